"""One memfd_restricted file: its pages, the slots that watch or bind it, and what these hear.

The file is no VM's: any VM may bind it, a slot keeps it alive until it is deleted, and a VM that goes leaves the pages
there for the next one (v10 1/9 "mm: Introduce memfd_restricted system call to create restricted user memory").
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field

from guestmem.backend import FileStat
from guestmem.errors import HostSignal
from guestmem.model.checks import Check, note, require
from guestmem.model.files import FileKind, OpenFile
from guestmem.model.pagecache import PageCache
from guestmem.model.restrictedmem.revision import Revision
from guestmem.model.restrictedmem.shmem import Shmem, Unzeroed
from guestmem.model.vm import Memslot, Vm
from guestmem.rules import Binding
from guestmem.runmap import RunMap
from guestmem.units import S64_MAX, U64, U64_MAX

__all__ = ("RESTRICTEDMEM", "Observer", "RestrictedMem")

RESTRICTEDMEM = FileKind(
    "restrictedmem",
    pseudo=True,
    regular=True,
    lseek_errno=errno.ESPIPE,
    positioned_errno=errno.ESPIPE,
    reopen_errno=errno.ENXIO,
)


@dataclass(slots=True, eq=False, repr=False)
class Observer:
    """What a slot leaves with its file. dangling: the slot has gone without it (``RestrictedMem.forget``)."""

    file: RestrictedMem
    vm: Vm
    slot: Memslot
    dangling: bool = False
    mixed: dict[int, set[int]] = field(default_factory=dict)  # by order: blocks marked as partly private

    def release(self) -> None:
        """The slot goes, by a deletion or with its VM."""
        self.file.unbind(self)


class RestrictedMem(OpenFile):
    """One file. size is in bytes, 0 until it is set; indexes count base pages.

    page_order is that of the page size asked for at creation, 0 where none was.
    """

    __slots__ = ("cache", "contents", "observers", "page_order", "ranges", "revision", "shmem", "size", "up_to_date")

    def __init__(self, shmem: Shmem, revision: Revision, page_order: int) -> None:
        super().__init__(RESTRICTEDMEM)
        self.shmem = shmem
        self.revision = revision
        self.page_order = page_order
        self.size = 0
        self.contents = Unzeroed()
        limit = (S64_MAX >> self._shift) + 1  # shmem asks no size of who writes
        self.cache = PageCache(limit, shmem.geometry.orders[-1], "shmem", shmem.geometry, shmem.pools, self.contents)
        self.up_to_date: RunMap[bool] = RunMap()  # the flag of the page itself, not of its folio
        self.observers: list[Observer] = []
        self.ranges: RunMap[Observer] = RunMap()  # who has an index, where bindings are exclusive
        shmem.files.append(self)

    @property
    def _shift(self) -> int:
        return self.shmem.geometry.base_page_size.bit_length() - 1

    def binding(self, gpa: int, size: int, offset: int, userspace_addr: int) -> Binding:
        """What a rule may know of a range of the file bound at a GPA; bytes."""
        geometry = self.shmem.geometry
        now = self.shmem.order_for(offset >> self._shift, self.size, self.page_order)
        asked, takes = geometry.page_size(self.page_order), geometry.page_size(now)
        return Binding(gpa, size, offset, asked, takes, geometry, userspace_addr)

    # -- slots ---------------------------------------------------------------------------------------------------------

    def bound_in(self, start: int, end: int) -> Observer | None:
        """Who has one of the indexes that a binding of [start, end) would keep (restrictedmem_bind)."""
        found = next(self.ranges.runs(start, end + self.revision.inclusive_end), None)
        return None if found is None else found[2]

    def bind(self, vm: Vm, slot: Memslot, pgoff: int) -> None:
        """Let a slot have [pgoff, pgoff + npages); the checks were made. The slot holds the file from now on."""
        slot.observer, slot.pgoff = Observer(self, vm, slot), pgoff
        self.observers.append(slot.observer)
        if self.revision.exclusive:
            self.ranges.set(pgoff, pgoff + slot.npages + self.revision.inclusive_end, slot.observer)
        self.get()

    def unbind(self, observer: Observer) -> None:
        """A slot goes and lets go of the file (restrictedmem_unbind)."""
        slot = observer.slot
        slot.observer = None
        self.observers.remove(observer)
        self.ranges.clear(slot.pgoff, slot.pgoff + slot.npages + self.revision.inclusive_end)
        self.put()

    def forget(self, observer: Observer) -> None:
        """A private slot was changed by a request without the flag: nobody unbinds it, and the file is never let go."""
        observer.slot.observer = None
        observer.dangling = True

    # -- as a source: nothing of the host's can map it ---------------------------------------------------------------

    def host_fault(self, start: int, end: int) -> None:
        """The file has no mmap operation."""
        raise AssertionError(f"bug in guestmem: a host mapping shows [{start:#x}, {end:#x}) of a restrictedmem file")

    def discard(self, start: int, end: int) -> bool:
        """There is no mapping to discard by."""
        return False

    # -- pages ---------------------------------------------------------------------------------------------------------

    def get_page(self, index: int) -> int:
        """Order of the folio that has the index, allocated now if there is none (restrictedmem_get_page).

        Neither the file's size nor a binding limits where; nothing is zeroed. EFBIG, EINVAL, ENOMEM.
        """
        require(PAGE_CHECKS, (self, index))
        self.cache.set_huge_order(self.shmem.order_for(index, self.size, self.page_order))
        order = self.cache.get_folio(index)
        self.up_to_date.set(index, index + 1, True)
        return order

    def populate(self, start: int, end: int) -> None:
        """Allocate what is missing of [start, end), zero what an earlier call allocated (shmem_fallocate); ENOMEM."""
        for first, last, order in list(self.cache.folios.runs(start, end)):
            if order:  # the folio's first page is asked, whichever page a guest came by
                heads = range(first >> order << order, last, 1 << order)
                stale = [(head, head + (1 << order)) for head in heads if not self.up_to_date.get(head)]
            else:
                stale = list(self.up_to_date.gaps(first, last))
            for begin, stop in stale:
                self.contents.clear(begin << self._shift, stop << self._shift)
                self.up_to_date.set(begin, stop, True)
        border = self.shmem.huge_until(self.size)
        parts = [(start, end)] if border is None else [(start, min(border, end)), (max(border, start), end)]
        for first, last in parts:
            if first < last:
                self.cache.set_huge_order(self.shmem.order_for(first, self.size, self.page_order))
                self.cache.populate(first, last)

    def punch_hole(self, start: int, end: int) -> None:
        """Free indexes [start, end): those who watch hear of it first (restrictedmem_punch_hole)."""
        for observer in self._watching(start, end):
            frames = _frames_of(observer, start, end)
            if observer.dangling:
                note("observer", "its slot is gone, and memory that was freed is read".format)
            elif frames is not None and observer.slot.as_id == 0:
                observer.vm.invalidate(*frames)
        self.cache.punch(start, end)
        self.up_to_date.clear(start, end)

    def poison(self, index: int) -> None:
        """Memory failure hits the page at an index: mappings and page stay (restrictedmem_error_page).

        v10 ends the VMs of all that watch, later revisions send SIGBUS to the process. No kernel came that far: it
        followed a null pointer before (L. Merwick, 24 January 2023; docs/restrictedmem.md).
        """
        watching = self._watching(index, index + 1)
        if self.cache.folio_order(index) is None or not watching:
            return
        if self.revision.memory_failure == "sigbus":
            raise HostSignal("SIGBUS", f"memory failure at file index {index:#x}")
        for vm in {id(observer.vm): observer.vm for observer in watching}.values():
            vm.shutdowns += 1

    def _watching(self, start: int, end: int) -> list[Observer]:
        if not self.revision.exclusive:
            return list(self.observers)
        runs = self.ranges.runs(start, end + self.revision.inclusive_end)
        return list({id(observer): observer for _, _, observer in runs}.values())

    def stat(self) -> FileStat:
        """fstat(2): of the inner file; where the outer one is shown, it has no size."""
        geometry = self.shmem.geometry
        if self.revision.outer_stat:
            return FileStat(0, 0, geometry.base_page_size, 0o100600, 1)
        pages = sum(end - start for start, end, _ in self.cache.folios)
        takes = geometry.page_size(self.shmem.order_for(0, self.size, self.page_order))
        return FileStat(self.size, (pages << self._shift) // 512, takes, 0o100600, 1)

    def release(self) -> None:
        """The last reference is gone: no observer is left, and the pages go."""
        self.cache.release()
        self.shmem.files.remove(self)

    def check_invariants(self) -> None:
        """Raise AssertionError if the file's tables do not agree."""
        self.cache.check_invariants()
        self.ranges.check_invariants()
        for observer in self.observers:
            assert observer.dangling or observer.slot.observer is observer, f"bug in guestmem: {observer.slot!r}"


PAGE_CHECKS: tuple[Check[tuple[RestrictedMem, int]], ...] = (
    Check(
        "index-is-bound",
        errno.EINVAL,
        "somebody must have bound the index",
        "restrictedmem_get_page",
        lambda page: not page[0].revision.exclusive or page[0].ranges.get(page[1]) is not None,
        lambda page: f"file index {page[1]:#x}",
    ),
    Check(
        "index-in-file-system",
        errno.EFBIG,
        "the index must be one that a file can have",
        "shmem_get_folio",
        lambda page: page[1] < page[0].cache.npages,
        lambda page: f"file index {page[1]:#x}",
    ),
)


def _frames_of(observer: Observer, start: int, end: int) -> tuple[int, int] | None:
    """The frames of a slot that file indexes [start, end) are taken for, right or wrong, or None for none."""
    slot = observer.slot
    base, pgoff, npages = slot.base_gfn, slot.pgoff, slot.npages
    match observer.file.revision.punch:
        case "forgets-offset":
            first, last = base + start, min(base + end, base + npages)
        case "underflows":  # unsigned: a range that ends below the offset can seem to end above the slot
            first = base + max(start - pgoff, 0) & U64_MAX
            last = min((base + end - pgoff) % U64, base + npages)
        case "right":
            first, last = base + max(start - pgoff, 0), base + min(end - pgoff, npages)
    return (first, last) if first < last else None
