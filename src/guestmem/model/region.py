"""KVM_SET_USER_MEMORY_REGION and _REGION2: create, move, change and delete memslots.

A refused call changes nothing a VMM can see, except that a refused *move* has already dropped the old mappings
(kvm_invalidate_memslot comes before kvm_arch_prepare_memory_region).
"""

from __future__ import annotations

from guestmem.model import dirtylog
from guestmem.model.checks import note, require
from guestmem.model.files import OpenFile
from guestmem.model.region_checks import (
    ARGUMENT_CHECKS,
    DELETE_CHECKS,
    MAP_CHECKS,
    MODIFY_CHECKS,
    PLACE_CHECKS,
    Region,
    RegionRequest,
    new_slot_checks,
)
from guestmem.model.vm import GuestMemfd, Memslot, Vm
from guestmem.uapi import KVM_X86_DEFAULT_VM, KVM_X86_QUIRK_SLOT_ZAP_ALL

__all__ = ("set_memory_region",)


def set_memory_region(vm: Vm, region: Region, file: OpenFile | None) -> None:
    """Do what the ioctl asks, or raise the KvmError of the first check that fails. file: what region.fd names."""
    request = RegionRequest(vm, region, file)
    require(ARGUMENT_CHECKS, request)
    request.old = old = vm.spaces[region.slot >> 16].by_id.get(region.slot & 0xFFFF)
    if not region.size:
        require(DELETE_CHECKS, request)
        assert old is not None
        note("change", "delete {}".format, old)
        _delete(vm, old)
    elif old is None:
        require(new_slot_checks(request), request)
        _create(vm, request)
    else:
        require(MODIFY_CHECKS, request)
        _modify(vm, request, old)


def _create(vm: Vm, request: RegionRequest) -> None:
    slot = request.slot()
    if request.region.wants_gmem:
        assert isinstance(request.file, GuestMemfd)
        request.file.bind(slot, request.region.offset >> vm.page_shift)
    note("change", "create {}".format, slot)
    vm.spaces[slot.as_id].insert(slot)
    vm.slot_pages += slot.npages
    vm.had_slots = True
    vm.mmio.generation += 1


def _delete(vm: Vm, slot: Memslot) -> None:
    """Remove a slot, its mappings and its binding; the file keeps its pages."""
    _drop_mappings(vm, slot)
    vm.spaces[slot.as_id].remove(slot)
    vm.slot_pages -= slot.npages
    if slot.gmem is not None:
        slot.gmem.unbind(slot)


def _modify(vm: Vm, request: RegionRequest, old: Memslot) -> None:
    region = request.region
    if request.base_gfn != old.base_gfn:
        require(PLACE_CHECKS, request)
        _drop_mappings(vm, old)
        require(MAP_CHECKS, request)
        note("change", "move {} to {:#x}".format, old, region.gpa)
        space = vm.spaces[old.as_id]
        space.remove(old)
        old.base_gfn, old.flags = request.base_gfn, region.flags
        space.insert(old)
    elif region.flags != old.flags:
        note("change", "flags of {} become {:#x}".format, old, region.flags)
        _set_flags(vm, old, region.flags)
    else:
        note("change", "nothing: {} stays as it is".format, old)


def _set_flags(vm: Vm, slot: Memslot, flags: int) -> None:
    """Switch dirty logging: on, huge mappings are split; off, they come back at once or at the next fault."""
    was_logging = slot.log_dirty
    vm.mmio.generation += 1
    slot.flags = flags
    if slot.as_id == 0 and slot.log_dirty and not was_logging:
        dirtylog.begin(vm, slot)
    elif slot.as_id == 0 and was_logging and not slot.log_dirty:
        dirtylog.end(vm, slot)


def _drop_mappings(vm: Vm, slot: Memslot) -> None:
    """A slot goes or moves (kvm_arch_flush_shadow_memslot): default VMs drop every mapping, while that quirk is on."""
    vm.mmio.generation += 1
    if vm.type == KVM_X86_DEFAULT_VM and not vm.disabled_quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL:
        vm.root_generation += 1
        vm.mmio.clear()
        vm.invalidate(0, 1 << (vm.machine.gpa_bits - vm.page_shift))
    elif slot.as_id == 0:
        vm.invalidate(slot.base_gfn, slot.end_gfn)
