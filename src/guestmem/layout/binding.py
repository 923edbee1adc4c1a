"""What a guest_memfd lets a slot map: the limits that come from the file and the binding, in closed form.

Released kernels hand out base pages only, so everything above is lost to order_0. With hugepages (profile ``next``) the
page taken for an index is rounded down to the file's page size, so a frame can be huge only where that page lies inside
the binding and GPA and offset are congruent; an alignment rule may refuse the binding or lower the order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from guestmem.layout.reasons import Reason
from guestmem.layout.value import File, Slot
from guestmem.units import align_down, align_up

__all__ = ("RELEASED", "BindingLimit", "FileLimits", "Part")

Part = tuple[int, int, Reason | None]  # guest-physical start, end, verdict


@dataclass(frozen=True, slots=True)
class FileLimits:
    """How a kernel takes guest_memfds.

    page_size: what files hand out that do not say (0: base pages only, every released kernel). congruent_hva: the
    slot's HVA limits private mappings too, as the slot metadata of every released kernel has it. serve_shared: a file
    with the MMAP flag serves shared pages too (Linux 6.18 on).
    """

    page_size: int = 0
    congruent_hva: bool = True
    serve_shared: bool = True

    def limit(self, slot: Slot, file: File, sizes: tuple[int, ...]) -> BindingLimit:
        """The limit on one binding of the file."""
        hugepages = (file.page_size or self.page_size) if self.page_size else 0
        return BindingLimit(slot, sizes[0], hugepages, self.congruent_hva)


RELEASED = FileLimits()


@dataclass(frozen=True, slots=True)
class BindingLimit:
    """The verdict on whole frames of one slot that come from its guest_memfd."""

    slot: Slot
    base: int
    page_size: int
    congruent_hva: bool

    def parts(self, start: int, end: int, page_size: int) -> Iterator[Part]:
        """Cut whole frames [start, end) of guest-physical space into verdicts for pages of page_size bytes."""
        if page_size == self.base:
            yield start, end, None
            return
        whole = self._whole(page_size)
        if whole is not None:
            yield start, end, whole
            return
        shift = self.slot.gpa - (self.slot.offset or 0)
        if shift % page_size == 0:
            yield start, end, None
            return
        # Not congruent: which huge pages of the file would lie inside the binding at all?
        bound = self.slot.offset or 0
        first = align_up(bound, page_size) + shift
        last = align_down(bound + self.slot.size, page_size) + shift
        first, last = max(start, min(first, end)), max(start, min(last, end))
        if first >= last:
            yield start, end, Reason.BINDING
            return
        yield start, first, Reason.BINDING
        yield first, last, Reason.OFFSET
        yield last, end, Reason.BINDING

    def _whole(self, page_size: int) -> Reason | None:
        """The reason that holds for every frame of the slot."""
        if not self.page_size:
            return Reason.ORDER_0
        hva = self.slot.likely_hva
        if self.congruent_hva and hva is not None and (self.slot.gpa - hva) % page_size:
            return Reason.HVA
        return Reason.BACKING if self.page_size < page_size else None
