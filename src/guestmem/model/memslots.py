"""Memslots: which guest frames are memory, and where that memory is.

Invariant: no two slots of an address space share a frame. A slot bound to a guest_memfd knows file and pgoff; the file
knows the slot (``bindings``); neither keeps the other alive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guestmem.runmap import RunMap
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

if TYPE_CHECKING:
    from guestmem.model.gmem import GuestMemfd

__all__ = ("MAX_SLOT_PAGES", "USER_SLOTS", "AddressSpaceSlots", "Memslot")

USER_SLOTS = 32764  # KVM_USER_MEM_SLOTS: 32767 less three internal ones
ALL_SLOTS = 32767  # KVM_MEM_SLOTS_NUM
MAX_SLOT_PAGES = (1 << 31) - 1  # KVM_MEM_MAX_NR_PAGES


@dataclass(slots=True, eq=False)
class Memslot:
    """struct kvm_memory_slot: frames [base_gfn, base_gfn + npages), pgoff in base pages of ``gmem``."""

    as_id: int
    id: int
    base_gfn: int
    npages: int
    flags: int
    userspace_addr: int
    gmem: GuestMemfd | None = None  # None again once the file is closed
    pgoff: int = 0
    gmem_only: bool = False  # every guest access goes to the file (KVM_MEMSLOT_GMEM_ONLY)

    @property
    def end_gfn(self) -> int:
        """One past the last frame."""
        return self.base_gfn + self.npages

    @property
    def readonly(self) -> bool:
        """Guest stores exit as MMIO."""
        return bool(self.flags & KVM_MEM_READONLY)

    @property
    def log_dirty(self) -> bool:
        """Dirty pages are logged, which forbids huge mappings."""
        return bool(self.flags & KVM_MEM_LOG_DIRTY_PAGES)

    @property
    def can_be_private(self) -> bool:
        """Whether the slot was created with a guest_memfd (kvm_slot_can_be_private)."""
        return bool(self.flags & KVM_MEM_GUEST_MEMFD)

    def __repr__(self) -> str:
        where = f"gpa frames [{self.base_gfn:#x}, {self.end_gfn:#x})"
        return f"Memslot({self.as_id}:{self.id} {where} flags={self.flags:#x} hva={self.userspace_addr:#x})"


@dataclass(slots=True)
class AddressSpaceSlots:
    """The slots of one address space (struct kvm_memslots)."""

    by_id: dict[int, Memslot] = field(default_factory=dict)
    by_gfn: RunMap[Memslot] = field(default_factory=RunMap)

    def insert(self, slot: Memslot) -> None:
        """Add a slot whose frames are free."""
        self.by_id[slot.id] = slot
        self.by_gfn.set(slot.base_gfn, slot.end_gfn, slot)

    def remove(self, slot: Memslot) -> None:
        """Take a slot out."""
        del self.by_id[slot.id]
        self.by_gfn.clear(slot.base_gfn, slot.end_gfn)

    def overlapping(self, start_gfn: int, end_gfn: int, ignore_id: int) -> Memslot | None:
        """A slot other than ignore_id with a frame in the range (kvm_check_memslot_overlap)."""
        for _, _, slot in self.by_gfn.runs(start_gfn, end_gfn):
            if slot.id != ignore_id:
                return slot
        return None

    def check_invariants(self) -> None:
        """Raise AssertionError if the two views of the slots differ."""
        self.by_gfn.check_invariants()
        frames = sorted((slot.base_gfn, slot.end_gfn, slot.id) for slot in self.by_id.values())
        assert frames == [(start, end, slot.id) for start, end, slot in self.by_gfn], f"bug in guestmem: {self!r}"
