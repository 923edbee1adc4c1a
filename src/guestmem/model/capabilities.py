"""KVM_CHECK_EXTENSION: what the kernel says it can do about guest memory.

A capability the table does not have answers 0, as an unknown number does in the kernel; whether such a number has
anything to do with memory is listed with the known divergences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from guestmem import uapi
from guestmem.model.profiles import Machine, Profile, has_private_mem
from guestmem.model.region_checks import USER_SLOTS
from guestmem.model.vm import Vm
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE

__all__ = ("CAPABILITIES", "check_extension")

Answer = Callable[[Profile, Machine, Vm | None], int]


def _one(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return 1


def _address_spaces(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    if not machine.smm:
        return 0
    return 1 if vm is not None and vm.has_private_mem else 2


def _attributes(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    private = vm.has_private_mem if vm is not None else any(has_private_mem(type) for type in machine.vm_types)
    return KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0


def _guest_memfd(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return int(profile.gmem_on_any_vm or vm is None or vm.has_private_mem)


def _guest_memfd_flags(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    flags = profile.gmem_flags_private if vm is not None and vm.has_private_mem else profile.gmem_flags
    return flags | uapi.GUEST_MEMFD_FLAG_HUGE_PAGES if profile.huge else flags


def _vm_types(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return sum(1 << type for type in machine.vm_types)


def _pre_fault(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return int(machine.two_dimensional_paging)


CAPABILITIES: Mapping[int, Answer] = MappingProxyType(
    {
        uapi.KVM_CAP_USER_MEMORY: _one,
        uapi.KVM_CAP_NR_MEMSLOTS: lambda profile, machine, vm: USER_SLOTS,
        uapi.KVM_CAP_SYNC_MMU: _one,
        uapi.KVM_CAP_DESTROY_MEMORY_REGION_WORKS: _one,
        uapi.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: _one,
        uapi.KVM_CAP_READONLY_MEM: _one,
        uapi.KVM_CAP_MULTI_ADDRESS_SPACE: _address_spaces,
        uapi.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: lambda profile, machine, vm: 3,
        uapi.KVM_CAP_DIRTY_LOG_RING: lambda profile, machine, vm: 1 << 20,  # bytes, 65536 entries
        uapi.KVM_CAP_DIRTY_LOG_RING_ACQ_REL: lambda profile, machine, vm: 1 << 20,
        uapi.KVM_CAP_USER_MEMORY2: _one,
        uapi.KVM_CAP_MEMORY_FAULT_INFO: _one,
        uapi.KVM_CAP_MEMORY_ATTRIBUTES: _attributes,
        uapi.KVM_CAP_GUEST_MEMFD: _guest_memfd,
        uapi.KVM_CAP_VM_TYPES: _vm_types,
        uapi.KVM_CAP_PRE_FAULT_MEMORY: _pre_fault,
        uapi.KVM_CAP_X86_APIC_BUS_CYCLES_NS: _one,
        uapi.KVM_CAP_GUEST_MEMFD_FLAGS: lambda profile, machine, vm: _guest_memfd_flags(profile, machine, vm),
    }
)


def check_extension(profile: Profile, machine: Machine, vm: Vm | None, cap: int) -> int:
    """The answer on /dev/kvm (vm None) or on a VM; never an error (kvm_vm_ioctl_check_extension_generic)."""
    answer = CAPABILITIES.get(cap)
    return 0 if answer is None else answer(profile, machine, vm)
