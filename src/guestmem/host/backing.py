"""What the host has behind a slot: in which pages, whether transparent huge pages may come, and what is huge now.

A stage-2 leaf can be huge only where the VMM's own page table maps the whole frame huge: KVM walks that table to decide
(host_pfn_mapping_level).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guestmem.host.leaves import FRAME, frames_of
from guestmem.host.mappings import HostMapping, Kind
from guestmem.host.memory import PAGE
from guestmem.host.processes import Processes
from guestmem.host.slots import KernelSlot

__all__ = ("FrameBacking", "SlotBacking", "find_backing")


@dataclass(frozen=True, slots=True)
class FrameBacking:
    """For each frame of one size: may the host ever map it whole, does it now, and can that be told?"""

    possible: NDArray[np.bool_]
    now: NDArray[np.bool_]
    known: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SlotBacking:
    """The host's side of one slot; ranges are host-virtual bytes [start, end), ascending.

    mappings: those that touch the slot. huge: mapped by 2M or larger now. unknown: where the kernel cannot tell that.
    """

    mappings: tuple[HostMapping, ...] = ()
    huge: tuple[tuple[int, int], ...] = ()
    unknown: tuple[tuple[int, int], ...] = ()

    @property
    def kind(self) -> Kind:
        """What most of the slot is."""
        sizes: dict[Kind, int] = {}
        for mapping in self.mappings:
            sizes[mapping.kind] = sizes.get(mapping.kind, 0) + mapping.end - mapping.start
        return max(sizes, key=lambda kind: sizes[kind], default="unknown")

    @property
    def page_size(self) -> int:
        """The page size that all of it has for certain, bytes."""
        return min((mapping.page_size for mapping in self.mappings), default=PAGE)

    @property
    def thp(self) -> bool | None:
        """Whether transparent huge pages may come everywhere (True), in part at most (False), or not to be told."""
        answers = {mapping.thp for mapping in self.mappings}
        return False if False in answers else None if None in answers or not answers else True

    def able(self, slot: KernelSlot, size: int) -> FrameBacking:
        """The verdict on every frame of ``size`` that the slot touches."""
        now = [(item.start, item.end) for item in self.mappings if item.page_size >= size]
        may = list(now)
        if size == FRAME:
            now += self.huge
            may += self.huge
            may += [(item.start, item.end) for item in self.mappings if item.thp]
        if not self.mappings and size == FRAME:
            may.append((slot.hva, slot.hva + slot.size))  # nothing is known: KVM's verdict stands
        unknown = list(self.unknown) if size == FRAME else []
        return FrameBacking(_whole(slot, size, may), _whole(slot, size, now), ~_touched(slot, size, unknown))


def find_backing(processes: Processes, pid: int, slot: KernelSlot, mappings: Sequence[HostMapping]) -> SlotBacking:
    """Ask /proc about the memory at the slot's HVA. Before Linux 6.7 only whole mappings can be told."""
    start, end = slot.hva, slot.hva + slot.size
    mine = tuple(item for item in mappings if item.start < end and item.end > start)
    pieces = processes.huge_pieces(pid, start, end)
    if pieces is not None:
        return SlotBacking(mine, tuple(_joined(pieces)))
    if not mine:
        return SlotBacking((), (), ((start, end),))
    huge, unknown = [], []
    for item in mine:
        piece = (max(item.start, start), min(item.end, end))
        if item.page_size >= FRAME or item.huge >= item.end - item.start:
            huge.append(piece)
        elif item.huge:
            unknown.append(piece)
    return SlotBacking(mine, tuple(_joined(huge)), tuple(unknown))


def _joined(pieces: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes as ranges that do not touch."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(pieces):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def _whole(slot: KernelSlot, size: int, pieces: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """The frames that lie wholly in one of the ranges and in the slot."""
    found = np.zeros(frames_of(slot, size), np.bool_)
    first, delta = slot.gpa // size, slot.gpa - slot.hva
    for start, end in _joined(pieces):
        low, high = max(start, slot.hva) + delta, min(end, slot.hva + slot.size) + delta
        if low < high:
            found[max(0, -(-low // size) - first) : max(0, high // size - first)] = True
    return found


def _touched(slot: KernelSlot, size: int, pieces: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """The frames that one of the ranges touches."""
    found = np.zeros(frames_of(slot, size), np.bool_)
    first, delta = slot.gpa // size, slot.gpa - slot.hva
    for start, end in pieces:
        low, high = max(start, slot.hva) + delta, min(end, slot.hva + slot.size) + delta
        if low < high:
            found[low // size - first : (high - 1) // size - first + 1] = True
    return found
