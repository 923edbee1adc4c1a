"""The slots of a layout by what they are windows on: one allocation (a RAMBlock, a zone, a mapping) has one HVA.

An index for everything that looks at neighbours: built once, each question is answered without a search.
"""

from __future__ import annotations

from collections.abc import Iterator

from guestmem.layout.value import Layout, Slot

__all__ = ("Regions", "region_base")


class Regions:
    """Slots by region, ascending by offset; a slot without a region's name is a region by itself."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._members: dict[str, list[int]] = {}
        self._by_end: dict[tuple[int, int], int] = {}
        self._allocated: dict[str, list[int]] = {}
        self._odd: dict[tuple[str, int], Slot | None] = {}
        self._starts = {(slot.address_space, slot.gpa) for slot in layout.slots}
        for index, slot in enumerate(layout.slots):
            self._members.setdefault(slot.name, []).append(index)
            self._by_end[slot.address_space, slot.end] = index
            self._allocated.setdefault(slot.allocation, []).append(index)
        for members in self._members.values():
            members.sort(key=lambda index: layout.slots[index].offset or 0)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._members.values())

    def members(self, slot: Slot) -> list[int]:
        """Indexes of the slots of this slot's region."""
        return self._members[slot.name]

    def lowest(self, slot: Slot) -> Slot:
        """The slot of the same region at the lowest GPA."""
        return min((self.layout.slots[index] for index in self.members(slot)), key=lambda other: other.gpa)

    def size(self, slot: Slot) -> int:
        """Bytes from the region's offset 0 to the end of its last slot."""
        return max((part.offset or 0) + part.size for part in map(self.layout.slots.__getitem__, self.members(slot)))

    def below(self, slot: Slot) -> Slot | None:
        """The slot that ends where this one starts."""
        index = self._by_end.get((slot.address_space, slot.gpa))
        return None if index is None else self.layout.slots[index]

    def touched_above(self, slot: Slot) -> bool:
        """Whether another slot starts where this one ends."""
        return (slot.address_space, slot.end) in self._starts

    def allocated(self, slot: Slot) -> int:
        """Bytes of the allocation that the slot is a piece of."""
        pieces = self._allocated[slot.allocation]
        if len(pieces) == len(self.members(slot)):
            return self.size(slot)
        return sum(self.layout.slots[index].size for index in pieces)

    def start(self, slot: Slot) -> int:
        """The lowest GPA of the allocation."""
        return self.layout.slots[min(self._allocated[slot.allocation])].gpa

    def odd_below(self, slot: Slot, page_size: int) -> Slot | None:
        """The nearest slot below whose odd size puts the slot's allocation, and all between, at odd GPAs."""
        walked: list[tuple[str, int]] = []
        found: Slot | None = None
        while True:
            walked.append((slot.allocation, page_size))
            if walked[-1] in self._odd:
                found = self._odd[walked[-1]]
                break
            lowest = self.layout.slots[min(self._allocated[walked[-1][0]])]
            below = self.below(lowest)
            if lowest.gpa % page_size == 0 or below is None or below.allocation == walked[-1][0]:
                break
            if self.allocated(below) % page_size:
                found = below
                break
            slot = below
        self._odd.update(dict.fromkeys(walked, found))
        return found


def region_base(slot: Slot) -> int | None:
    """The HVA, known or assumed, of the region's offset 0."""
    hva = slot.likely_hva
    return None if hva is None else hva - (slot.offset or 0)
