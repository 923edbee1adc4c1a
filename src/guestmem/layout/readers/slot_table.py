"""The memslots of a process while its ioctls are replayed: what KVM_SET_USER_MEMORY_REGION left standing.

Keys are (VM, address space, slot number); a size of 0 deletes, anything else creates or replaces. The caller feeds
calls that succeeded. Where a source does not tell results, ``collides`` says whether KVM would have refused the call.
"""

from __future__ import annotations

from dataclasses import replace

from guestmem.layout.value import Slot

__all__ = ("SlotTable",)


class SlotTable:
    """Slots by (vm, address space, number)."""

    def __init__(self) -> None:
        self._slots: dict[tuple[str, int, int], Slot] = {}
        self._vms: dict[str, None] = {}  # in the order they were first seen

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

    def collides(self, vm: str, slot: Slot) -> bool:
        """Whether another slot of the same VM and address space holds some of the GPA range."""
        return any(
            key[:2] == (vm, slot.address_space) and key[2] != slot.number and old.gpa < slot.end and slot.gpa < old.end
            for key, old in self._slots.items()
        )

    def find(self, vm: str, address_space: int, number: int) -> Slot | None:
        """The standing slot of that number."""
        return self._slots.get((vm, address_space, number))

    def vms(self) -> list[str]:
        """VMs in the order they were first seen."""
        return list(self._vms)

    def slots(self, vm: str) -> list[Slot]:
        """The slots that stand in a VM."""
        return [slot for (owner, _, _), slot in self._slots.items() if owner == vm]
