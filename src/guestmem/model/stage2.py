"""Stage-2 tables of a VM: which guest frames are mapped, at which level, to what.

Leaves of one order that continue one another are one run, so a terabyte of mappings costs as much as a page.
Invariant: a run of order n starts and ends at multiples of 2**n frames.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from guestmem.geometry import Geometry
from guestmem.model.files import Source
from guestmem.runmap import RunMap
from guestmem.units import align_down, align_up

__all__ = ("Leaf", "Stage2", "LeafCounters")


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a run of leaves maps: frame gfn shows page ``gfn - delta`` of source, at ``order``."""

    order: int
    source: Source
    delta: int
    private: bool
    writable: bool


@dataclass(slots=True)
class LeafCounters:
    """What happened to the mappings of a VM, counted by order of the leaf, and how guest accesses ended."""

    maps: Counter[int]
    zaps: Counter[int]
    splits: Counter[int]  # a leaf of this order made smaller, or removed because only part of it changed
    merges: Counter[int]  # a leaf of this order that replaced smaller ones
    exits: Counter[str]


class Stage2:
    """The second-level page tables of one VM."""

    def __init__(self, geometry: Geometry) -> None:
        self._orders = geometry.orders
        self.leaves: RunMap[Leaf] = RunMap()
        self.statistics = LeafCounters(Counter(), Counter(), Counter(), Counter(), Counter())
        self.generation = 0  # grows when leaves go or change: what a CPU has cached of them is void then

    def get(self, gfn: int) -> Leaf | None:
        """The leaf that maps gfn."""
        return self.leaves.get(gfn)

    def map(self, gfn: int, leaf: Leaf, count: int = 1) -> None:
        """Install count leaves from the block that contains gfn on.

        Smaller ones under them are replaced; a larger one above is split, a level at a time (kvm_tdp_mmu_map).
        """
        size = 1 << leaf.order
        start = align_down(gfn, size)
        end = start + count * size
        replaced = {old.order for _, _, old in self.leaves.runs(start, end)}
        if replaced:
            if self.leaves.covers(start, end, leaf):
                return  # a spurious fault: the mapping is there
            if max(replaced) > leaf.order:
                self._split_above(start, leaf.order)
                self._split_above(end - 1, leaf.order)
            elif min(replaced) < leaf.order:
                self.statistics.merges[leaf.order] += 1
        self.leaves.set(start, end, leaf)
        self.statistics.maps[leaf.order] += count

    def zap(self, start_gfn: int, end_gfn: int) -> int:
        """Remove every leaf with a frame in the range; a huge leaf goes as a whole. How many went."""
        zapped = 0
        for run_start, run_end, leaf in list(self.leaves.runs(start_gfn, end_gfn)):
            size = 1 << leaf.order
            first, last = align_down(run_start, size), align_up(run_end, size)
            if leaf.order:
                partial = {first} if first < start_gfn else set()
                if last > end_gfn:
                    partial.add(last - size)
                self.statistics.splits[leaf.order] += len(partial)
            self.leaves.clear(first, last)
            self.statistics.zaps[leaf.order] += (last - first) >> leaf.order
            zapped += (last - first) >> leaf.order
        self.generation += zapped > 0
        return zapped

    def split(self, start_gfn: int, end_gfn: int) -> None:
        """Replace the huge leaves of the range by base pages that map the same (dirty logging starts)."""
        self.generation += 1
        for run_start, run_end, leaf in list(self.leaves.runs(start_gfn, end_gfn)):
            if leaf.order:
                small = Leaf(0, leaf.source, leaf.delta, leaf.private, leaf.writable)
                self.leaves.set(run_start, run_end, small)
                self.statistics.splits[leaf.order] += (run_end - run_start) >> leaf.order

    def _split_above(self, gfn: int, order: int) -> None:
        """Make the leaf at gfn one of at most this order; the rest of it stays mapped by leaves as large as can be."""
        while (leaf := self.leaves.get(gfn)) is not None and leaf.order > order:
            lower = max(smaller for smaller in self._orders if smaller < leaf.order)
            first = align_down(gfn, 1 << leaf.order)
            self.leaves.set(first, first + (1 << leaf.order), replace(leaf, order=lower))
            self.statistics.splits[leaf.order] += 1

    def count(self) -> dict[int, int]:
        """Leaves by order, as KVM's pages_4k, pages_2m, pages_1g statistics count them."""
        leaves: Counter[int] = Counter()
        for start, end, leaf in self.leaves:
            leaves[leaf.order] += (end - start) >> leaf.order
        return dict(sorted(leaves.items()))

    def check_invariants(self) -> None:
        """Raise AssertionError if a leaf is not naturally aligned."""
        self.leaves.check_invariants()
        for start, end, leaf in self.leaves:
            size = 1 << leaf.order
            assert start % size == 0 and end % size == 0, f"bug in guestmem: misaligned leaf {start:#x}-{end:#x} {leaf}"
