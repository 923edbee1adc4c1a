"""What is mapped of each slot, by size of leaf: 4K leaves counted per 2M frame, 2M and 1G leaves noted one by one.

Counts per 2M frame are all that reports and reasons need: a guest of 64 GiB mapped by 4K has 16.8 million leaves, but
32,768 such frames. Frames that a slot fills only in part are kept entry by entry.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from guestmem.host.memory import PAGE
from guestmem.host.slots import KernelSlot
from guestmem.units import GIB, MIB

__all__ = ("ENTRIES", "FRAME", "LARGE", "Leaves", "SlotLeaves", "frames_of", "shared_frames")

ENTRIES = PAGE // 8  # of a page table
FRAME, LARGE = 2 * MIB, GIB  # what the two levels above the base page map


@dataclass(slots=True)
class SlotLeaves:
    """One slot's leaves: ``small`` 4K leaves in each 2M frame, whether ``big`` one 2M leaf, ``giant`` one 1G leaf.

    The first element of each is the frame that holds the slot's first byte.
    """

    small: NDArray[np.int64]
    big: NDArray[np.bool_]
    giant: NDArray[np.bool_]

    @property
    def mapped(self) -> tuple[int, int, int]:
        """Bytes mapped by 4K, 2M and 1G leaves."""
        return (
            int(self.small.sum()) * PAGE,
            int(np.count_nonzero(self.big)) * FRAME,
            int(np.count_nonzero(self.giant)) * LARGE,
        )


@dataclass(slots=True)
class Leaves:
    """What a walk found: leaves (in all) of 4K, 2M, 1G, tables that were read, and tables that could not be."""

    slots: dict[tuple[int, int], SlotLeaves]
    leaves: tuple[int, int, int] = (0, 0, 0)
    tables: int = 0
    unreadable: int = 0
    how: str = "none"
    _by_space: dict[int, list[KernelSlot]] = field(default_factory=dict)

    @classmethod
    def empty(cls, slots: Iterable[KernelSlot]) -> Leaves:
        """Nothing mapped of any slot."""
        leaves = cls({})
        for slot in slots:
            frames, large = frames_of(slot, FRAME), frames_of(slot, LARGE)
            leaves.slots[slot.address_space, slot.gpa] = SlotLeaves(
                np.zeros(frames, np.int64), np.zeros(frames, np.bool_), np.zeros(large, np.bool_)
            )
            leaves._by_space.setdefault(slot.address_space, []).append(slot)
        return leaves

    def of(self, slot: KernelSlot) -> SlotLeaves:
        """The leaves of one slot."""
        return self.slots[slot.address_space, slot.gpa]

    def add_small(self, space: int, frames: NDArray[np.uint64], counts: NDArray[np.int64]) -> None:
        """4K leaves: 2M frames that lie in one slot each, and how many leaves each has. Two roots count once."""
        for slot in self._by_space.get(space, ()):
            chosen = (frames >= slot.gpa // FRAME) & (frames <= (slot.end - 1) // FRAME)
            place = (frames[chosen] - np.uint64(slot.gpa // FRAME)).astype(np.int64)
            np.maximum.at(self.of(slot).small, place, counts[chosen])

    def add_shared(self, space: int, frame: int, present: NDArray[np.bool_]) -> None:
        """4K leaves of one 2M frame that a slot fills only in part: whether each of its pages is mapped."""
        for slot in self._by_space.get(space, ()):
            low, high = max(slot.gpa, frame * FRAME), min(slot.end, (frame + 1) * FRAME)
            if low < high:
                inside = present[low % FRAME // PAGE : (high - 1) % FRAME // PAGE + 1]
                small, place = self.of(slot).small, frame - slot.gpa // FRAME
                small[place] = max(small[place], int(np.count_nonzero(inside)))

    def add_large(self, space: int, size: int, frames: NDArray[np.uint64]) -> None:
        """Leaves of ``size`` (2M or 1G), as frame numbers of that size."""
        for slot in self._by_space.get(space, ()):
            chosen = (frames >= slot.gpa // size) & (frames <= (slot.end - 1) // size)
            place = (frames[chosen] - np.uint64(slot.gpa // size)).astype(np.int64)
            leaves = self.of(slot)
            (leaves.big if size == FRAME else leaves.giant)[place] = True

    def count(self, small: int = 0, big: int = 0, giant: int = 0) -> None:
        """Add to the sums of leaves."""
        self.leaves = (self.leaves[0] + small, self.leaves[1] + big, self.leaves[2] + giant)


def frames_of(slot: KernelSlot, size: int) -> int:
    """How many frames of ``size`` bytes a slot touches."""
    return (slot.end - 1) // size - slot.gpa // size + 1


def shared_frames(slots: Iterable[KernelSlot], space: int) -> frozenset[int]:
    """The 2M frames of an address space that some slot fills only in part."""
    edges = {edge for slot in slots if slot.address_space == space for edge in (slot.gpa, slot.end)}
    return frozenset(edge // FRAME for edge in edges if edge % FRAME)
