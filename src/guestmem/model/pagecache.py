"""The pages of one guest_memfd: folios, where allocation puts them, holes, poison.

Indexes (pgoff) count base pages. A folio of order n covers 2**n indexes and starts at a multiple of 2**n.

Allocation takes the folio that *contains* the index, so its start is the index rounded down: it may begin before the
range somebody asked for, or end after it. That is the behaviour the alignment rules are about, and it knows nothing of
bindings. Backings:

- ``thp``: the largest leaf size up to the file's page size whose aligned block is empty and that the host has; else
  smaller ones. Released kernels are this with a file page size of one page.
- ``hugetlb``: a page of the file's size, no fallback; the host can set them all aside for the file (``reserve``).
- ``shmem``: as restrictedmem's shmem had it: a huge page where the *current* setting says so and the block is empty,
  else a base page; the setting may change at any time (shmem_get_folio, v10 "mm: Introduce memfd_restricted").

Invariant: folios are disjoint, naturally aligned and inside the file; the pools' use is the folios' count.
"""

from __future__ import annotations

import errno
from typing import Literal

from guestmem.geometry import Geometry
from guestmem.model.checks import Check, observed, require
from guestmem.model.contents import Contents
from guestmem.model.pools import HostPools
from guestmem.runmap import RunMap
from guestmem.units import align_down, align_up

__all__ = ("Backing", "PageCache")

Backing = Literal["thp", "hugetlb", "shmem"]


class PageCache:
    """The address_space of one file: npages long, filled on demand."""

    def __init__(
        self,
        npages: int,
        page_order: int,
        backing: Backing,
        geometry: Geometry,
        pools: HostPools,
        contents: Contents | None = None,
    ) -> None:
        self.npages = npages
        self.backing = backing
        self.page_order = page_order
        self.contents = Contents() if contents is None else contents
        self.folios: RunMap[int] = RunMap()  # index -> order of the folio that covers it
        self.poisoned: RunMap[bool] = RunMap()
        self.allocations: dict[int, int] = {}  # folios ever allocated, by order
        self.pins: list[RunMap[bool]] = []  # pages that the host's users hold, by who holds them
        self.splits = 0
        self._geometry = geometry
        self._pools = pools
        self._huge_order = page_order  # shmem: the setting of the moment
        self._candidates = self._orders_to_try()
        self._reserves = False

    def reserve(self) -> None:
        """Set aside all pages that the empty file can have; the caller has seen that there are so many."""
        self._reserves = True
        self._pools.reserve(self.page_order, self.npages >> self.page_order)

    def set_huge_order(self, order: int) -> None:
        """Change what shmem takes from now on; pages already there stay (a write to shmem's huge= setting)."""
        if self.backing != "shmem":
            raise ValueError(f"a {self.backing} file's page size is fixed at creation; only shmem's may change")
        if order not in self._geometry.orders:
            raise ValueError(f"order {order} is not a leaf size of {self._geometry.name}")
        self._huge_order = order
        self._candidates = self._orders_to_try()

    @property
    def largest_page(self) -> str:
        """The name of the largest folio's size."""
        return self._geometry.name_of(self.largest_order)

    @property
    def largest_order(self) -> int:
        """The largest folio the backing may take at the moment."""
        return self._huge_order if self.backing == "shmem" else self.page_order

    def folio_order(self, index: int) -> int | None:
        """Order of the folio that covers index; None for a hole."""
        return self.folios.get(index)

    def get_folio(self, index: int) -> int:
        """Order of the folio that covers index, allocated now if there is none (kvm_gmem_get_folio); ENOMEM."""
        order = self.folios.get(index)
        if order is None:
            _, order = self._allocate(index, index + 1)
        return order

    def populate(self, start: int, end: int) -> None:
        """Fill the holes of [start, end) (kvm_gmem_allocate); ENOMEM leaves what was filled so far."""
        while (hole := next(self.folios.gaps(start, end), None)) is not None:
            start, _ = self._allocate(*hole)

    def punch(self, start: int, end: int) -> None:
        """Free [start, end) (kvm_gmem_punch_hole).

        A folio only partly inside is split to base pages (thp, shmem) or kept and zeroed in part (hugetlb).
        """
        self.merge(start, end)
        for run_start, run_end, order in list(self.folios.runs(start, end)):
            if self.backing == "hugetlb" and order < self.page_order:
                continue  # part of a split page of the pool
            size = 1 << order
            first, last = align_up(run_start, size), align_down(run_end, size)
            if first < last:
                self._free(first, last, order)
            if self.backing != "hugetlb":
                for edge in {align_down(run_start, size), align_down(run_end - 1, size)}:
                    part_start, part_end = max(edge, start), min(edge + size, end)
                    if part_end - part_start < size:
                        self._split(edge, order)
                        self._free(part_start, part_end, 0)
        page = self._geometry.base_page_size
        self.contents.zero(start * page, end * page)

    def split(self, start: int, end: int) -> None:
        """Make base pages of every folio with a page in [start, end); contents stay."""
        for run_start, run_end, order in list(self.folios.runs(start, end)):
            if order:
                first, last = align_down(run_start, 1 << order), align_up(run_end, 1 << order)
                self._split(first, order, (last - first) >> order)

    def merge(self, start: int, end: int) -> None:
        """Make folios of the file's page size again of what was split in [start, end), whole blocks (hugetlb)."""
        size = 1 << self.page_order
        start, end = align_up(start, size), align_down(end, size)
        if self.backing != "hugetlb" or size == 1 or start >= end:
            return
        for first, last, order in list(self.folios.runs(start, end)):
            if not order:  # pages of a block come and go together
                self._pools.split(self.page_order, -((last - first) >> self.page_order))
                self.folios.set(first, last, self.page_order)

    def poison(self, index: int) -> None:
        """Mark the page at index as broken; it stays in the file until punched out (kvm_gmem_error_folio)."""
        self.poisoned.set(index, index + 1, True)

    def first_held(self, start: int, end: int) -> int | None:
        """The first of indexes [start, end) whose page somebody holds besides the file."""
        return min((index for pages in self.pins for index, _, _ in pages.runs(start, end)), default=None)

    def release(self) -> None:
        """Free everything: the last reference to the file is gone."""
        self.merge(0, self.npages)
        for start, end, order in self.folios:
            self._give(order, (end - start) >> order)
        if self._reserves:
            self._pools.reserve(self.page_order, -(self.npages >> self.page_order))
        self.folios = RunMap()
        self.poisoned = RunMap()
        self.contents = Contents()

    def check_invariants(self) -> None:
        """Raise AssertionError if a folio is misaligned or outside the file."""
        self.folios.check_invariants()
        self.poisoned.check_invariants()
        for start, end, order in self.folios:
            size = 1 << order
            assert start % size == 0 and end % size == 0, f"bug in guestmem: misaligned folio at {start:#x}"
            assert not order or end <= self.npages, (
                f"bug in guestmem: folio [{start:#x}, {end:#x}) past the end {self.npages:#x}"
            )

    def _orders_to_try(self) -> list[int]:
        if self.backing == "hugetlb":
            return [self.page_order]
        if self.backing == "shmem":
            return [self._huge_order, 0] if self._huge_order else [0]
        return [order for order in reversed(self._geometry.orders) if order <= self.page_order]

    def _allocate(self, start: int, end: int) -> tuple[int, int]:
        """Allocate the folio of start, and as many more of its order as lie in the hole; the new end and the order."""
        taken = self._take(start, end)
        if taken is None or observed():
            require((HOST_HAS_PAGE,), (self, start, taken))
        assert taken is not None
        return taken

    def _take(self, start: int, end: int) -> tuple[int, int] | None:
        for order in self._candidates:
            size = 1 << order
            first = align_down(start, size)
            # A base page past the end is possible: 6.18 binds ranges there (Profile.signed_binding_offset).
            if order and (first + size > self.npages or self.folios.overlaps(first, first + size)):
                end = min(end, first + size)  # after this block a folio of this order may fit again
                continue
            count = max(1, (align_down(end, size) - first) >> order)
            if self._reserves:
                self._pools.reserve(order, -count)
            count = self._pools.take(order, count)
            if count:
                self.folios.set(first, first + count * size, order)
                self.allocations[order] = self.allocations.get(order, 0) + count
                return first + count * size, order
        return None

    def _free(self, first: int, last: int, order: int) -> None:
        self._give(order, (last - first) >> order)
        self.folios.clear(first, last)
        self.poisoned.clear(first, last)
        for pages in self.pins:
            pages.clear(first, last)

    def _give(self, order: int, count: int) -> None:
        self._pools.give(order, count)
        if self._reserves:
            self._pools.reserve(order, count)

    def _split(self, first: int, order: int, count: int = 1) -> None:
        self._pools.split(order, count)
        self.folios.set(first, first + (count << order), 0)
        self.splits += count


HOST_HAS_PAGE: Check[tuple[PageCache, int, tuple[int, int] | None]] = Check(
    "host-has-page",
    errno.ENOMEM,
    "the host must have a page that the backing may take",
    "kvm_gmem_get_folio",
    lambda asked: asked[2] is not None,
    lambda asked: f"file index {asked[1]:#x}, {asked[0].backing}, pages of up to {asked[0].largest_page}",
    "add pages of that size to the host's pool, or use a backing that falls back to smaller pages",
)
