"""The slots of a layout by what they are windows on: one allocation (a RAMBlock, a zone, a mapping) has one HVA.

An index for everything that looks at neighbours: built once, each question is answered without a search.
"""

from __future__ import annotations

from collections.abc import Iterator

from guestmem.layout.value import Layout, Slot

__all__ = ("Regions", "name_of", "region_base")


class Regions:
    """Slots by region, ascending by offset; a slot without a region's name is a region by itself."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._members: dict[str, list[int]] = {}
        self._by_end: dict[tuple[int, int], int] = {}
        self._starts = {(slot.address_space, slot.gpa) for slot in layout.slots}
        for index, slot in enumerate(layout.slots):
            self._members.setdefault(name_of(slot), []).append(index)
            self._by_end[slot.address_space, slot.end] = index
        for members in self._members.values():
            members.sort(key=lambda index: layout.slots[index].offset or 0)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._members.values())

    def members(self, slot: Slot) -> list[int]:
        """Indexes of the slots of this slot's region."""
        return self._members[name_of(slot)]

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


def name_of(slot: Slot) -> str:
    """The region's name, or one made of the GPA."""
    return slot.region or f"the slot at GPA {slot.gpa:#x}"


def region_base(slot: Slot) -> int | None:
    """The HVA, known or assumed, of the region's offset 0."""
    hva = slot.likely_hva
    return None if hva is None else hva - (slot.offset or 0)
