"""KVM_SET_USER_MEMORY_REGION and _REGION2: create, move, change and delete memslots.

A refused call changes nothing a VMM can see, except that a refused *move* has already dropped the old mappings
(kvm_invalidate_memslot comes before kvm_arch_prepare_memory_region).
"""

from __future__ import annotations

from guestmem.model import dirtylog
from guestmem.model.checks import Check, note, require
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
from guestmem.model.restrictedmem import region as restrictedmem
from guestmem.model.vm import GuestMemfd, Memslot, Vm
from guestmem.uapi import KVM_X86_DEFAULT_VM, KVM_X86_QUIRK_SLOT_ZAP_ALL

__all__ = ("set_memory_region",)


def set_memory_region(vm: Vm, region: Region, file: OpenFile | None) -> None:
    """Do what the ioctl asks, or raise the KvmError of the first check that fails. file: what region.fd names."""
    request = RegionRequest(vm, region, file)
    require(_argument_checks(vm), request)
    request.old = old = vm.spaces[region.slot >> 16].by_id.get(region.slot & 0xFFFF)
    if not region.size:
        require(DELETE_CHECKS, request)
        assert old is not None
        note("change", "delete {}".format, old)
        _delete(vm, old)
    elif old is None:
        of_its_time = new_slot_checks if vm.profile.revision is None else restrictedmem.new_slot_checks
        require(of_its_time(request), request)
        _create(vm, request)
    else:
        require(MODIFY_CHECKS if vm.profile.revision is None else restrictedmem.MODIFY_CHECKS, request)
        _modify(vm, request, old)


def _argument_checks(vm: Vm) -> tuple[Check[RegionRequest], ...]:
    revision = vm.profile.revision
    return ARGUMENT_CHECKS if revision is None else restrictedmem.argument_checks(revision, vm.rule)


def _create(vm: Vm, request: RegionRequest) -> None:
    slot = request.slot()
    if request.region.wants_gmem and isinstance(request.file, GuestMemfd):
        request.file.bind(slot, request.region.offset >> vm.page_shift)
    elif request.region.wants_gmem:
        restrictedmem.file_of(request).bind(vm, slot, request.region.offset >> vm.page_shift)
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
    if slot.observer is not None:
        slot.observer.release()


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
    if old.observer is not None and not region.wants_gmem:
        note("forgotten", "the file is never told, nor let go".format)
        old.observer.file.forget(old.observer)


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
    by_quirk = vm.type == KVM_X86_DEFAULT_VM and not vm.disabled_quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL
    if by_quirk or vm.profile.revision is not None:  # which was no quirk yet, for no type of VM
        vm.root_generation += 1
        vm.mmio.clear()
        vm.invalidate(0, 1 << (vm.machine.gpa_bits - vm.page_shift))
    elif slot.as_id == 0:
        vm.invalidate(slot.base_gfn, slot.end_gfn)
