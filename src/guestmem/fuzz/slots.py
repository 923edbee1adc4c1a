"""Operations on memslots and attributes: overlaps, moves, deletions, wrap-arounds, conversions while mapped."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from guestmem.fuzz.draft import Draft, DraftFile, DraftSlot, DraftVm
from guestmem.fuzz.values import (
    ABSOLUTE_HVAS,
    HUGE_OFFSETS,
    M2,
    ODD_GPAS,
    ODD_SIZES,
    ODD_SLOTS,
    REGION_FLAGS,
    SIZES,
)
from guestmem.harness import BOOT_GPA, BOOT_SIZE, BOOT_SLOT, BUFFER_SIZE
from guestmem.harness import PAGE_SIZE as PAGE
from guestmem.recordings import ioctls
from guestmem.recordings.operation import Handle, HostAddress
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, KVM_MEMORY_ATTRIBUTE_PRIVATE
from guestmem.units import U64

__all__ = ("bind", "boot", "change", "delete", "set_attributes", "set_slot", "some_buffer")

_IDS = (0, 1, 2, 3, 4, 5, 32763)


def boot(s: Draft, vm: DraftVm) -> None:
    """The slot that the guest's code lives in."""
    where = HostAddress(buf=f"boot:{vm.handle}")
    _region(s, vm.handle, BOOT_SLOT, DraftSlot(BOOT_GPA, BOOT_SIZE, 0, where), 0, 0)


def set_slot(s: Draft) -> None:
    """Any slot: good, odd in one way, or in several."""
    vm = s.one(s.vms)
    size, number = s.one(SIZES), s.new_slot(vm, _IDS)
    slot = DraftSlot(s.free_gpa(vm, size), size, s.one((0, 0, 1, 2, 3)), some_buffer(s))
    if s.chance(7):
        slot.gpa = s.one(ODD_GPAS)
    if s.chance(7):
        slot.size = s.one(ODD_SIZES)
    if s.chance(12):
        slot.flags = s.one(REGION_FLAGS)
    if s.chance(5):
        number = s.one(ODD_SLOTS)
    slot.userspace_addr = _hva(s, slot.size)
    if slot.flags & KVM_MEM_GUEST_MEMFD:
        slot.userspace_addr = _harmless(s)
    if _hits_boot(slot):
        return
    handle = s.any_handle() if s.chance(2) else vm.handle
    if s.chance(25):
        s.add(ioctls.SetUserMemoryRegion, vm=handle, slot=number, **_fields(slot))
    else:
        _region(s, handle, number, slot, s.file_handle(20), 0)
    _believe(vm, number, slot)


def bind(s: Draft) -> None:
    """A slot of a guest_memfd: ranges of the file that meet, odd offsets, files of other VMs."""
    if not s.files:
        return
    file = s.one(s.files[-4:])
    vm = s.one([vm for vm in s.vms if vm.handle == file.vm and not s.chance(5)] or s.vms)
    if s.scope.flags_of(vm.type) is None and s.chance(80):
        return  # refused because of the VM's type, whatever the rest is
    size = min(s.one(SIZES), max(file.size, PAGE)) if s.chance(85) else s.one(SIZES)
    offset = s.page_of(min(file.size, 4 * M2)) if s.chance(60) else 0
    if s.chance(80):
        offset = max(0, min(offset, file.size - size)) // PAGE * PAGE
    if s.chance(8):
        offset = s.one(
            (*HUGE_OFFSETS, file.size, max(file.size - size, 0), (U64 - size) % U64, ((1 << 63) - size) % U64)
        )
    slot = DraftSlot(s.free_gpa(vm, size), size, KVM_MEM_GUEST_MEMFD, _over_file(s, file, offset))
    if s.chance(4):
        slot.flags |= s.one((KVM_MEM_READONLY, KVM_MEM_LOG_DIRTY_PAGES, 8, 1 << 16))
    if s.chance(3):
        slot.gpa = s.one(ODD_GPAS)
    if _hits_boot(slot):
        return
    number = s.new_slot(vm, _IDS)
    handle = s.any_handle() if s.chance(6) else file.handle
    pads = {"pad1": 1, "pad2": s.one((0, 1, U64 - 1))} if s.chance(3) else {}
    _region(s, vm.handle, number, slot, handle, offset, **pads)
    _believe(vm, number, slot)


def change(s: Draft) -> None:
    """A slot again: the same, moved, with dirty logging on or off, with another size, address or kind."""
    vm, number = _existing(s)
    if vm is None or number not in vm.slots:
        return
    slot = replace(vm.slots[number])
    what = s.one(("same", "move", "move", "shift", "dirty", "dirty", "dirty", "size", "hva", "readonly", "file"))
    if what in ("move", "shift"):
        step = s.one((PAGE, -PAGE, M2, -M2, slot.size, -slot.size))
        slot.gpa = s.gpa() if what == "move" else max(0, min(slot.gpa + step, U64 - 1))
        vm.outdated = True
    slot.flags ^= {"dirty": KVM_MEM_LOG_DIRTY_PAGES, "readonly": KVM_MEM_READONLY, "file": KVM_MEM_GUEST_MEMFD}.get(
        what, 0
    )
    if what == "size":
        slot.size = max(PAGE, slot.size + s.one((PAGE, -PAGE))) % U64
    if what == "hva" or slot.flags & KVM_MEM_GUEST_MEMFD:
        slot.userspace_addr = _harmless(s)
    if _hits_boot(slot):
        return
    _region(s, vm.handle, number, slot, s.file_handle(30), 0)
    if what in ("move", "shift", "dirty"):
        vm.slots[number] = slot


def delete(s: Draft) -> None:
    """Size 0: mostly of a slot that exists, with flags and addresses that may spoil it."""
    vm, number = _existing(s)
    vm = vm or s.one(s.vms)
    flags = s.one((0, 0, 0, 0, KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, 8))
    gpa, hva = s.one((0, 0, 0, PAGE, 1)), s.one((0, 0, 0, 1, 1 << 63))
    slot = DraftSlot(gpa, 0, flags, HostAddress(abs=hva))
    _region(s, vm.handle, number, slot, s.one((-1, -1, 0, 9999)), s.one((0, 0, 0, 1)))
    vm.slots.pop(number, None)
    vm.outdated = True


def set_attributes(s: Draft) -> None:
    """Private or shared, over parts of slots, whole ones, several; odd arguments."""
    vm = s.one(s.vms)
    address, size = s.gpa(), s.one((PAGE, PAGE, 2 * PAGE, 4 * PAGE, 8 * PAGE, M2, M2 + PAGE, 3 * M2))
    attributes, flags = s.one((KVM_MEMORY_ATTRIBUTE_PRIVATE, KVM_MEMORY_ATTRIBUTE_PRIVATE, 0)), 0
    if vm.slots and s.chance(50):
        slot = s.one(list(vm.slots.values()))
        address, size = slot.gpa, min(slot.size, 4 * M2)
    if s.chance(8):
        address = s.one((1, PAGE - 1, U64 - PAGE, U64 - 2 * PAGE, 1 << 60, BOOT_GPA + BOOT_SIZE + PAGE))
    if s.chance(6):
        size = s.one((0, 1, PAGE - 1, U64 - PAGE, U64 - 1, (U64 - address) % U64))
    if s.chance(5):
        attributes = s.one((1, 2, 4, 9, 16, 1 << 63, U64 - 1))
    if s.chance(3):
        flags = s.one((1, 8, U64 - 1))
    if attributes and address < BOOT_GPA + BOOT_SIZE + PAGE and address + size > BOOT_GPA:
        return  # the guest's own code and its doorbell, which ends every touch, stay shared
    handle = s.any_handle() if s.chance(3) else vm.handle
    s.add(ioctls.SetMemoryAttributes, vm=handle, address=address, size=size, attributes=attributes, flags=flags)


def _believe(vm: DraftVm, number: int, slot: DraftSlot) -> None:
    """It is a slot from now on, if it can be; else mostly something else is there, which is just as well."""
    if slot.size and vm.is_free(slot.gpa, slot.size):
        vm.slots.setdefault(number, slot)


def some_buffer(s: Draft) -> HostAddress:
    """Somewhere in one of the process's buffers."""
    return HostAddress(
        buf=s.one(("A", "A", "A", "B", "C", "RO", "NONE")), off=s.one((0, 0, 0, PAGE, 2 * PAGE, M2, 3 * M2))
    )


def _hva(s: Draft, size: int) -> HostAddress:
    """A buffer, a mapping, an end of one of them, or a number."""
    if s.chance(8):
        return HostAddress(abs=s.one(ABSOLUTE_HVAS))
    if s.maps and s.chance(40):
        map = s.one(s.maps)
        return HostAddress(map=map.handle, off=s.page_of(map.length))
    if s.chance(6):
        return HostAddress(
            buf=s.one(("A", "B")), off=max(BUFFER_SIZE - min(size, BUFFER_SIZE) + s.one((0, PAGE, 1)), 0)
        )
    return some_buffer(s)


def _harmless(s: Draft) -> HostAddress:
    """Host memory that shadow paging cannot fill leaves from (divergence "shadow-prefetch"): nothing writable."""
    return s.one(
        (
            HostAddress(abs=0),
            HostAddress(buf="RO", off=s.one((0, PAGE, M2))),
            HostAddress(buf="NONE"),
            HostAddress(abs=1 << 45),
        )
    )


def _over_file(s: Draft, file: DraftFile, offset: int) -> HostAddress:
    """Where the kernel's documentation wants it: over a mapping of the same bytes of the file; else harmless."""
    if s.scope.two_dimensional_paging and s.chance(60):
        return some_buffer(s)  # no shadow paging: any memory will do, and shared faults use it
    same = [map for map in s.maps if map.file is file and map.offset <= offset < map.offset + map.length]
    if same and s.chance(70):
        map = s.one(same)
        return HostAddress(map=map.handle, off=offset - map.offset)
    return _harmless(s)


def _existing(s: Draft) -> tuple[DraftVm | None, int]:
    """A slot that probably exists; else none, and a number."""
    there = [(vm, number) for vm in s.vms for number in vm.slots]
    return s.one(there) if there and not s.chance(5) else (None, s.one(_IDS))


def _hits_boot(slot: DraftSlot) -> bool:
    """Whether it would cover the doorbell, which ends every touch. An overlap with the boot slot is refused anyway."""
    return slot.gpa <= BOOT_GPA + BOOT_SIZE < slot.gpa + slot.size or slot.gpa == BOOT_GPA


def _region(s: Draft, vm: Handle, number: int, slot: DraftSlot, file: Handle, offset: int, **pads: int) -> None:
    bound = {"guest_memfd": file, "guest_memfd_offset": offset, **pads}
    s.add(ioctls.SetUserMemoryRegion2, vm=vm, slot=number, **_fields(slot), **bound)


def _fields(slot: DraftSlot) -> dict[str, Any]:
    return {"flags": slot.flags, "gpa": slot.gpa, "size": slot.size, "userspace_addr": slot.userspace_addr}
