"""What a VMM asked KVM for: memslots, the host memory behind them, guest_memfds and memory attributes.

Plain values in kernel terms; they know no format and no coverage. gpa, hva, offset and size are bytes, ranges are
half-open. ``hva`` is a fact (the source says it); ``assumed_hva`` is an address in place of one the source does
not say, and is meaningful only modulo page sizes. Everything assumed is also an Assumption, so that no report can
forget to say so.

Left out: the history of a slot (moves, deletes), NUMA placement, and whether transparent huge pages are granted.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from guestmem.uapi import (
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
)
from guestmem.units import KIB

__all__ = (
    "Assumption",
    "Backing",
    "BackingKind",
    "File",
    "Layout",
    "Range",
    "ReaderRemark",
    "RefusedCall",
    "Severity",
    "Slot",
)

BackingKind = Literal["anonymous", "shmem", "file", "hugetlb", "device", "unknown"]
Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Backing:
    """The host memory at a slot's HVA. page_size (bytes) is what the mapping has for certain: 4K, or hugetlb's size.

    thp: whether transparent huge pages may come, None where the source does not tell. huge: what the host maps by 2M or
    larger already, as ranges of HVAs, ascending. Only a look at a running VM tells these two.
    """

    kind: BackingKind = "unknown"
    page_size: int = 4 * KIB
    thp: bool | None = None
    huge: tuple[tuple[int, int], ...] = ()

    @property
    def transparent(self) -> bool:
        """Whether the kernel may (never: will) map it with transparent huge pages."""
        return self.thp is not False and self.kind in ("anonymous", "shmem", "unknown")


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """Guest-physical bytes from start up to, not including, end."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class File:
    """A guest_memfd: its name in this layout, size (bytes; 0 when the source does not say), flags, and page size.

    page_size is the largest folio the file is made of where the kernel allows more than 4K (profile ``next``).
    """

    name: str
    size: int = 0
    flags: int = 0
    page_size: int = 0

    @property
    def mmap(self) -> bool:
        """Whether guest faults on shared pages come from the file too (GUEST_MEMFD_FLAG_MMAP, Linux 6.18 on)."""
        return bool(self.flags & GUEST_MEMFD_FLAG_MMAP)


@dataclass(frozen=True, slots=True)
class Slot:
    """One memslot (struct kvm_userspace_memory_region2).

    ``region`` names what the slot is a window on (a RAMBlock, a zone, a mapping) and ``offset`` is where in it the slot
    starts; for a slot with ``file`` the offset is guest_memfd_offset. number is the slot id without address space.
    ``part_of`` names what the VMM gives a size to, where that is more than the region.
    """

    gpa: int
    size: int
    hva: int | None = None
    flags: int = 0
    region: str = ""
    offset: int | None = None
    file: str | None = None
    backing: Backing = Backing()
    number: int | None = None
    address_space: int = 0
    assumed_hva: int | None = None
    part_of: str = ""

    @property
    def name(self) -> str:
        """The region's name, or one made of the GPA."""
        return self.region or f"the slot at GPA {self.gpa:#x}"

    @property
    def allocation(self) -> str:
        """The name of what the VMM gave a size to: the region, or what it is a part of."""
        return self.part_of or self.name

    @property
    def end(self) -> int:
        """One past the last guest-physical byte."""
        return self.gpa + self.size

    @property
    def likely_hva(self) -> int | None:
        """The HVA, or the address assumed for it, or None where nothing is known and none is needed."""
        return self.assumed_hva if self.hva is None else self.hva

    def is_placed_for(self, page_size: int) -> bool:
        """Whether GPA and HVA agree modulo page_size bytes, as far as is known (kvm_alloc_memslot_metadata)."""
        return self.likely_hva is None or not (self.gpa - self.likely_hva) % page_size

    @property
    def readonly(self) -> bool:
        """KVM_MEM_READONLY."""
        return bool(self.flags & KVM_MEM_READONLY)

    @property
    def dirty_log(self) -> bool:
        """KVM_MEM_LOG_DIRTY_PAGES: mapped with base pages while on."""
        return bool(self.flags & KVM_MEM_LOG_DIRTY_PAGES)

    @property
    def guest_memfd(self) -> bool:
        """KVM_MEM_GUEST_MEMFD: private pages come from ``file``."""
        return bool(self.flags & KVM_MEM_GUEST_MEMFD)


@dataclass(frozen=True, slots=True)
class Assumption:
    """Something the source does not say and the answer rests on; ``option`` is how to change it."""

    about: str
    text: str
    option: str = ""


@dataclass(frozen=True, slots=True)
class ReaderRemark:
    """Something a reader saw that is a finding by itself: slots missing from the source, memory left unused."""

    id: str
    severity: Severity
    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """A slot that the source shows KVM to have refused: the errno's name, and the slots that there were before."""

    slot: Slot
    errno: str
    before: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The memslots of one VM, ascending by (address_space, gpa), and what the source says about them.

    vmm is "qemu", "cloud-hypervisor", "firecracker", "libvirt" or ""; machine a VMM's machine or version, for remedies.
    private are the ranges with KVM_MEMORY_ATTRIBUTE_PRIVATE, ascending, disjoint and not touching.
    """

    source: str
    format: str
    slots: tuple[Slot, ...]
    files: tuple[File, ...] = ()
    private: tuple[Range, ...] = ()
    assumptions: tuple[Assumption, ...] = ()
    remarks: tuple[ReaderRemark, ...] = ()
    refused_calls: tuple[RefusedCall, ...] = ()
    vmm: str = ""
    machine: str = ""
    _by_name: dict[str, File] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.slots) > 1:
            ordered = tuple(sorted(self.slots, key=lambda slot: (slot.address_space, slot.gpa)))
            object.__setattr__(self, "slots", ordered)
        if self.private:
            object.__setattr__(self, "private", merged(self.private))
        self._by_name.update((file.name, file) for file in self.files)

    def file_of(self, slot: Slot) -> File | None:
        """The guest_memfd that slot is bound to; one of unknown size and flags when the source says no more."""
        if slot.file is None:
            return None
        return self._by_name.get(slot.file) or File(slot.file)

    def private_in(self, start: int, end: int) -> tuple[Range, ...]:
        """The private ranges that touch guest-physical bytes [start, end)."""
        if not self.private:
            return ()
        first = bisect_right(self.private, start, key=lambda run: run.end)
        last = bisect_right(self.private, end - 1, key=lambda run: run.start)
        return self.private[first:last]

    def only(self, slots: Iterable[Slot]) -> Layout:
        """A layout of these slots alone, with the files and private ranges that concern them."""
        chosen = tuple(slots)
        private = [run for slot in chosen for run in self.private_in(slot.gpa, slot.end)]
        files = [
            file for name in dict.fromkeys(slot.file for slot in chosen) if (file := self._by_name.get(name or ""))
        ]
        return Layout(self.source, self.format, chosen, tuple(files), tuple(private))


def merged(ranges: Iterable[Range]) -> tuple[Range, ...]:
    """The same bytes as ascending ranges that neither overlap nor touch; empty ranges vanish."""
    result: list[Range] = []
    for item in sorted(ranges):
        if item.start >= item.end:
            continue
        if result and item.start <= result[-1].end:
            result[-1] = Range(result[-1].start, max(result[-1].end, item.end))
        else:
            result.append(item)
    return tuple(result)
