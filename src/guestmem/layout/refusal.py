"""Which slots of a layout KVM would refuse, by the checks of KVM_SET_USER_MEMORY_REGION2 that need no state but slots.

Errno and order are the kernel's (kvm_set_memory_region; Linux 7.2 for errnos that changed). A layout does not say in
which order its slots were set, so of two that collide the lower one (the lower file offset) stands and the other is
refused. Left out: limits of the machine (highest GPA, number of slots), see the model for those.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence

from guestmem.layout.value import Layout, Slot
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import KIB, U64

__all__ = ("refusals",)

_HVA_END = (1 << 56) - 4 * KIB  # five-level paging, the largest any x86 kernel accepts
_MAX_PAGES = (1 << 31) - 1
_MAX_SLOT_NUMBER = 32763
_VALID_FLAGS = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD


def refusals(layout: Layout, page_size: int = 4 * KIB, by_rule: Container[int] = ()) -> dict[int, str]:
    """Index into layout.slots -> why KVM refuses that slot, errno first.

    by_rule are slots whose binding an alignment rule refuses: they do not stand, so nothing collides with them.
    """
    found: dict[int, str] = {}
    for index, slot in enumerate(layout.slots):
        why = _alone(layout, slot, page_size)
        if why is not None:
            found[index] = why
    standing = [index for index in range(len(layout.slots)) if index not in found and index not in by_rule]
    for index, why in (*_gpa_overlaps(layout, standing), *_file_overlaps(layout, standing)):
        found.setdefault(index, why)
    return found


def _alone(layout: Layout, slot: Slot, page_size: int) -> str | None:
    """The first check that a slot fails by itself."""
    if slot.number is not None and not 0 <= slot.number <= _MAX_SLOT_NUMBER:
        return f"EINVAL: slot number {slot.number} is above {_MAX_SLOT_NUMBER}"
    if slot.flags & ~_VALID_FLAGS:
        return f"EINVAL: flags {slot.flags:#x} are unknown to KVM"
    if slot.guest_memfd and slot.flags & (KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY):
        return "EINVAL: a guest_memfd slot can be neither read-only nor dirty-logged"
    if slot.size % page_size or slot.size == 0:
        return f"EINVAL: memory_size {slot.size:#x} is not a positive multiple of {page_size:#x}"
    if slot.gpa % page_size:
        return f"EINVAL: guest_phys_addr {slot.gpa:#x} is not a multiple of {page_size:#x}"
    if slot.hva is not None and (slot.hva % page_size or slot.hva + slot.size > _HVA_END):
        return f"EINVAL: userspace_addr {slot.hva:#x} is unaligned or outside user space"
    if slot.guest_memfd and ((slot.offset or 0) % page_size or (slot.offset or 0) + slot.size >= U64):
        return f"EINVAL: guest_memfd_offset {slot.offset or 0:#x} is unaligned or wraps"
    if slot.end >= U64:
        return f"EINVAL: guest_phys_addr {slot.gpa:#x} plus size {slot.size:#x} wraps 2**64"
    if slot.size // page_size > _MAX_PAGES:
        return f"EINVAL: {slot.size // page_size} pages are more than {_MAX_PAGES} in one slot"
    file = layout.file_of(slot)
    if slot.guest_memfd and file is not None and file.size and (slot.offset or 0) + slot.size > file.size:
        return f"EINVAL: offset {slot.offset or 0:#x} plus size {slot.size:#x} is past the file's size {file.size:#x}"
    return None


def _gpa_overlaps(layout: Layout, standing: Sequence[int]) -> Iterator[tuple[int, str]]:
    last: Slot | None = None
    for index in standing:
        slot = layout.slots[index]
        if last is not None and last.address_space == slot.address_space and slot.gpa < last.end:
            yield index, f"EEXIST: GPA {slot.gpa:#x} lies in the slot at {last.gpa:#x}, which ends at {last.end:#x}"
        else:
            last = slot


def _file_overlaps(layout: Layout, standing: Sequence[int]) -> Iterator[tuple[int, str]]:
    bound = [
        (slot.file, slot.offset or 0, index)
        for index, slot in ((index, layout.slots[index]) for index in standing)
        if slot.file is not None and slot.guest_memfd
    ]
    last: tuple[str, int] | None = None
    for name, offset, index in sorted(bound):
        if last is not None and last[0] == name and offset < last[1]:
            yield index, f"EEXIST: file offset {offset:#x} of {name} is bound already, up to {last[1]:#x}"
        else:
            last = (name, offset + layout.slots[index].size)
