"""Offsets in a guest_memfd: the one that serves a slot best from some place on, and slots laid end to end.

Whether a rule accepts a binding, and what the binding can map, changes with the offset's alignment and with its
distance from the GPA modulo the page sizes. So those offsets are tried that are congruent with the GPA, or multiples,
for some size. Nothing here is proved to be the least; every offset that is named was judged by the coverage.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import itemgetter

from guestmem.layout.coverage import HostLimits, cover
from guestmem.layout.value import File, Layout, Range, Slot
from guestmem.uapi import KVM_MEM_GUEST_MEMFD
from guestmem.units import align_down, align_up

__all__ = ("best_offset", "cost_at", "laid_out")

Taken = Sequence[tuple[int, int]]  # file ranges [start, end) in use, ascending and disjoint


def cost_at(slot: Slot, offset: int, host: HostLimits) -> int | None:
    """Leaves that the slot costs when bound at an offset, all private; None if the binding is refused."""
    return _cost(slot.gpa, slot.size, offset, host)


@lru_cache(maxsize=1 << 16)
def _cost(gpa: int, size: int, offset: int, host: HostLimits) -> int | None:
    bound = Slot(gpa, size, file="f", offset=offset, flags=KVM_MEM_GUEST_MEMFD)
    coverage = cover(Layout("plan", "plan", (bound,), files=(File("f"),), private=(Range(gpa, bound.end),)), host)
    return sum(coverage.leaves) if coverage.mapped[0] == size else None


def best_offset(slot: Slot, host: HostLimits, start: int = 0, taken: Taken = ()) -> tuple[int, int] | None:
    """(leaves, offset) of the cheapest offset from start on, the lowest of equals; None if none is accepted."""
    best: tuple[int, int] | None = None
    for hoped in sorted((_hoped(slot, offset, host), offset) for offset in _candidates(slot, host, start, taken)):
        if best is not None and best <= hoped:
            break  # the others cost no less, and most need not be judged
        cost = cost_at(slot, hoped[1], host)
        if cost is not None and (best is None or (cost, hoped[1]) < best):
            best = cost, hoped[1]
    return best


def _hoped(slot: Slot, offset: int, host: HostLimits) -> int:
    """Leaves at an offset if congruence alone decided: no rule or binding makes them fewer."""
    leaves = mapped = 0
    for page in reversed(host.sizes):
        if page <= host.files.page_size and (slot.gpa - offset) % page == 0:
            frames = max(align_down(slot.end, page) - align_up(slot.gpa, page), mapped)
            leaves += (frames - mapped) // page
            mapped = frames
    return leaves + (slot.size - mapped) // host.sizes[0]


def laid_out(slots: Sequence[Slot], host: HostLimits, taken: Taken = ()) -> tuple[int | None, ...]:
    """Offsets for slots that share a file, around what is taken; None for a slot that is accepted nowhere.

    Slots are laid end to end by GPA or by size, whichever leaves out fewer and ends sooner.
    """
    by_gpa = sorted(range(len(slots)), key=lambda index: slots[index].gpa)
    by_size = sorted(by_gpa, key=lambda index: -slots[index].size)
    return min((_end_to_end(slots, order, host, taken) for order in (by_gpa, by_size)), key=itemgetter(0))[1]


def _end_to_end(
    slots: Sequence[Slot], order: Sequence[int], host: HostLimits, taken: Taken
) -> tuple[tuple[int, int], tuple[int | None, ...]]:
    """(how many are left out, the end) and the offsets."""
    offsets: list[int | None] = [None] * len(slots)
    end = 0
    for index in order:
        if (found := best_offset(slots[index], host, end, taken)) is not None:
            offsets[index] = found[1]
            end = found[1] + slots[index].size
    return (offsets.count(None), end), tuple(offsets)


def _candidates(slot: Slot, host: HostLimits, start: int, taken: Taken) -> set[int]:
    """Offsets from start on that are worth trying and free."""
    return {_beside(slot, offset, step, taken) for offset, step in _aligned(slot, host, start)}


def _aligned(slot: Slot, host: HostLimits, start: int) -> Iterator[tuple[int, int]]:
    """(offset, step): the first from start on that is congruent or a multiple; those that follow are step apart."""
    own = 2 * (slot.gpa & -slot.gpa)  # two rules ask for the GPA's own alignment, one for exactly that
    for page in {*host.sizes, max(own, host.sizes[-1])}:
        for base in {start, max(start, slot.gpa)}:  # one rule looks at the magnitude of the GPA
            yield base + (slot.gpa - base) % page, page
            yield align_up(base, page), page


def _beside(slot: Slot, offset: int, step: int, taken: Taken) -> int:
    """The first of the offsets at which the slot touches nothing taken."""
    place = bisect_right(taken, offset, key=itemgetter(1))
    while place < len(taken) and taken[place][0] < offset + slot.size:
        offset += max(-(-(taken[place][1] - offset) // step), 0) * step
        place += 1
    return offset
