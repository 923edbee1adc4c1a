"""A VMM's calls replayed: which slots there are, what is mapped where, which ranges are private after each call.

For sources that are logs of calls. Addresses are bytes; the caller feeds calls that succeeded, and asks
``SlotTable.collides`` where a source does not say whether they did.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace

from guestmem.layout.value import Backing, Range, RefusedCall, Slot, merged

__all__ = ("MappingTable", "ProcessMapping", "SlotTable", "with_attribute")


_MAX_REFUSED = 16  # calls of one VM that are explained


class SlotTable:
    """What KVM_SET_USER_MEMORY_REGION left, by (vm, address space, slot number); a size of 0 deletes."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, int, int], Slot] = {}
        self._vms: dict[str, None] = {}  # in the order they were first seen
        self._refused: dict[str, list[RefusedCall]] = {}

    def set(self, vm: str, slot: Slot) -> None:
        """Apply one call that succeeded."""
        self._vms.setdefault(vm)
        key = (vm, slot.address_space, slot.number or 0)
        old = self._slots.pop(key, None)
        if slot.size == 0:
            return
        if old is not None and slot.file is None and old.file is not None:
            # KVM refuses every change of a guest_memfd slot but deletion, so this is another slot by the same number.
            old = None
        if old is not None and not slot.region and old.hva == slot.hva:
            slot = replace(slot, region=old.region, offset=old.offset, backing=old.backing)
        self._slots[key] = slot

    def refuse(self, vm: str, slot: Slot, errno: str) -> None:
        """Remember one call that failed, unless it repeats one; at most _MAX_REFUSED for each VM."""
        self._vms.setdefault(vm)
        calls = self._refused.setdefault(vm, [])
        same = any(
            (call.slot.number, call.slot.gpa, call.slot.size) == (slot.number, slot.gpa, slot.size) for call in calls
        )
        if not same and len(calls) < _MAX_REFUSED:
            calls.append(RefusedCall(slot, errno, tuple(self.slots(vm))))

    def refused(self, vm: str) -> tuple[RefusedCall, ...]:
        """The calls of a VM that failed."""
        return tuple(self._refused.get(vm, ()))

    def collides(self, vm: str, slot: Slot) -> bool:
        """Whether another slot of the same VM and address space holds some of the GPA range."""
        return any(
            key[:2] == (vm, slot.address_space) and key[2] != slot.number and old.gpa < slot.end and slot.gpa < old.end
            for key, old in self._slots.items()
        )

    def __len__(self) -> int:
        return len(self._slots) + len(self._vms)

    def vms(self) -> list[str]:
        """VMs in the order they were first seen."""
        return list(self._vms)

    def slots(self, vm: str) -> list[Slot]:
        """The slots that a VM has."""
        return [slot for (owner, _, _), slot in self._slots.items() if owner == vm]


@dataclass(frozen=True, slots=True)
class ProcessMapping:
    """Host-virtual bytes [start, end): a window on ``name`` at ``offset`` with a backing; fd is -1 for anonymous."""

    start: int
    end: int
    name: str
    offset: int
    backing: Backing
    fd: int = -1


class MappingTable:
    """The mappings of a process, disjoint: a new one replaces what it covers (MAP_FIXED), munmap cuts holes."""

    def __init__(self) -> None:
        self._maps: list[ProcessMapping] = []

    def __len__(self) -> int:
        return len(self._maps)

    def map(self, mapping: ProcessMapping) -> None:
        """Add a mapping over whatever was there."""
        self.unmap(mapping.start, mapping.end)
        self._maps.insert(bisect_right(self._maps, mapping.start, key=lambda item: item.start), mapping)

    def unmap(self, start: int, end: int) -> None:
        """Cut [start, end) out of every mapping."""
        first = bisect_right(self._maps, start, key=lambda item: item.end)
        last = first
        kept: list[ProcessMapping] = []
        while last < len(self._maps) and self._maps[last].start < end:
            old = self._maps[last]
            if old.start < start:
                kept.append(replace(old, end=start))
            if old.end > end:
                kept.append(replace(old, start=end, offset=old.offset + end - old.start))
            last += 1
        self._maps[first:last] = kept

    def find(self, address: int) -> ProcessMapping | None:
        """The mapping that holds the address."""
        place = bisect_right(self._maps, address, key=lambda item: item.start)
        if place == 0 or self._maps[place - 1].end <= address:
            return None
        return self._maps[place - 1]


def with_attribute(private: Iterable[Range], changed: Range, value: bool) -> list[Range]:
    """The private ranges after ``changed`` became private (value True) or shared.

    >>> with_attribute([Range(0, 8)], Range(2, 4), False)
    [Range(start=0, end=2), Range(start=4, end=8)]
    """
    kept = [
        part
        for run in private
        for part in (Range(run.start, min(run.end, changed.start)), Range(max(run.start, changed.end), run.end))
    ]
    return list(merged([*kept, changed] if value else kept))
