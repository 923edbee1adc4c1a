"""What a guest_memfd lets a slot map: the limits that come from the file and the binding, in closed form.

Released kernels hand out base pages only, so everything above is lost to order_0. With hugepages (profile ``next``) the
page taken for an index is rounded down to the file's page size, so a frame can be huge only where that page lies inside
the binding, GPA and offset are congruent, and GPA and HVA too, though no page comes from there (a mark of the slot); an
alignment rule may refuse the binding or lower the order of a folio.
A folio is taken at the file's page size throughout: whether the host's pool has enough of them nobody can promise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from guestmem.geometry import Geometry
from guestmem.layout.reasons import Reason
from guestmem.layout.segments import Part
from guestmem.layout.value import File, Slot
from guestmem.rules import DEFAULT, Binding, Rule
from guestmem.units import align_down, align_up

__all__ = ("RELEASED", "BindingLimit", "FileLimits")

_ENDS = 3  # folios at either end of a binding that a rule may treat unlike those in the middle


@dataclass(frozen=True, slots=True)
class FileLimits:
    """How a kernel takes guest_memfds.

    page_size: what files are made of that do not say themselves (0: base pages only, as every released kernel, and then
    the rule does not matter). serve_shared: a file with the MMAP flag serves shared pages too (Linux 6.18 on).
    """

    page_size: int = 0
    rule: Rule = DEFAULT
    serve_shared: bool = True

    def limit(self, slot: Slot, file: File, geometry: Geometry) -> BindingLimit:
        """The limit on one binding of the file."""
        page_size = (file.page_size or self.page_size) if self.page_size else 0
        return BindingLimit(slot, geometry, page_size, self.rule)


RELEASED = FileLimits()


@dataclass(frozen=True, slots=True)
class BindingLimit:
    """The verdict on one binding: refused by the rule, or what whole frames of it can be mapped with."""

    slot: Slot
    geometry: Geometry
    page_size: int
    rule: Rule

    @property
    def refusal(self) -> str | None:
        """Why the rule refuses the binding, or None."""
        return self.rule.refuses(self._binding) if self.page_size else None

    def parts(self, start: int, end: int, page_size: int) -> Iterator[Part]:
        """Cut whole frames [start, end) of guest-physical space into verdicts for pages of page_size bytes."""
        offset = self.slot.offset or 0
        if page_size == self.geometry.base_page_size:
            yield start, end, None
        elif not self.page_size:
            yield start, end, Reason.ORDER_0
        elif self.page_size < page_size:
            yield start, end, Reason.BACKING
        elif (self.slot.gpa - offset) % page_size:
            yield from self._not_congruent(start, end, page_size)
        elif not self.slot.is_placed_for(page_size):
            yield start, end, Reason.HVA
        else:
            yield from self._by_rule(start, end, page_size)

    @property
    def _binding(self) -> Binding:
        slot = self.slot
        return Binding(slot.gpa, slot.size, slot.offset or 0, self.page_size, self.page_size, self.geometry)

    def _not_congruent(self, start: int, end: int, page_size: int) -> Iterator[Part]:
        """GPA and offset are not congruent: which huge pages of the file would lie inside the binding at all?"""
        offset = self.slot.offset or 0
        shift = self.slot.gpa - offset
        first = max(start, min(align_up(offset, page_size) + shift, end))
        last = max(start, min(align_down(offset + self.slot.size, page_size) + shift, end))
        if first >= last:
            yield start, end, Reason.BINDING
            return
        yield start, first, Reason.BINDING
        yield first, last, Reason.OFFSET
        yield last, end, Reason.BINDING

    def _by_rule(self, start: int, end: int, page_size: int) -> Iterator[Part]:
        shift = self.slot.gpa - (self.slot.offset or 0)
        wanted = self.geometry.order_of(page_size)
        for first, last, order in self._orders(page_size):
            verdict = None if order >= wanted else Reason.RULE
            yield max(start, first + shift), min(end, last + shift), verdict

    def _orders(self, page_size: int) -> Iterator[tuple[int, int, int]]:
        """Runs of file offsets (start, end, the order the rule allows) over the binding, cut at frames of page_size.

        A frame counts by the best of its pages: the fault that is allowed the huge page maps it for all of them.
        """
        start = self.slot.offset or 0
        end = start + self.slot.size
        low, high = align_down(start, self.page_size), align_up(end, self.page_size)
        if high - low <= 2 * _ENDS * self.page_size:
            folios = [(folio, folio + self.page_size) for folio in range(low, high, self.page_size)]
        else:  # a rule looks at the ends of the binding; folios in the middle are all alike
            folios = [(low + n * self.page_size, low + (n + 1) * self.page_size) for n in range(_ENDS)]
            folios.append((folios[-1][1], high - _ENDS * self.page_size))
            folios.extend((high - n * self.page_size, high - (n - 1) * self.page_size) for n in range(_ENDS, 0, -1))
        for first, last in folios:
            at_start, after = self._folio_orders(first, start)
            whole = first + page_size if last - first == self.page_size else last
            yield max(first, start), min(whole, end), max(at_start, after)
            yield max(whole, start), min(last, end), after

    def _folio_orders(self, folio: int, start: int) -> tuple[int, int]:
        """What the rule allows to a fault on the folio's first page, and on any other page of it."""
        order, base = self.geometry.order_of(self.page_size), self.geometry.base_page_size
        after = self.rule.fault_order(self._binding, max(folio + base, start), order)
        return (self.rule.fault_order(self._binding, folio, order) if folio >= start else after), after
