"""KVM_CHECK_EXTENSION and KVM_ENABLE_CAP: what the kernel says it can do about guest memory, and its quirks.

A capability the table does not have answers 0, as an unknown number does in the kernel; whether such a number has
anything to do with memory is listed with the known divergences.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from guestmem import uapi
from guestmem.model.checks import Check, flags_zero, require
from guestmem.model.profiles import (
    Machine,
    Profile,
    converts_in_place,
    creation_flags,
    has_guest_memfd,
    offers_private_mem,
)
from guestmem.model.region_checks import USER_SLOTS
from guestmem.model.vm import Vm
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE

__all__ = ("CAPABILITIES", "ENABLE_CHECKS", "EnableRequest", "check_extension", "enable_cap")

Answer = Callable[[Profile, Machine, Vm | None], int]


def _one(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return 1


def _address_spaces(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    if not machine.smm:
        return 0
    return 1 if vm is not None and vm.has_private_mem else 2


def _attributes(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    of_the_vm = machine.vm_attributes or not profile.in_place
    return 0 if not of_the_vm or converts_in_place(profile, machine) else _private(machine, vm)


def _gmem_attributes(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return _private(machine, vm) if converts_in_place(profile, machine) else 0


def _private(machine: Machine, vm: Vm | None) -> int:
    private = offers_private_mem(machine) if vm is None else vm.has_private_mem
    return KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0


def _guest_memfd(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return int(has_guest_memfd(profile, machine) and (profile.gmem_on_any_vm or vm is None or vm.has_private_mem))


def _guest_memfd_flags(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    """Those that work alone: the flag for hugetlb pages needs a page_order, and is not among them."""
    return creation_flags(profile, machine, private=vm is not None and vm.has_private_mem)


def _vm_types(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return sum(1 << type for type in machine.vm_types)


def _pre_fault(profile: Profile, machine: Machine, vm: Vm | None) -> int:
    return int(machine.two_dimensional_paging)


def _quirks(profile: Profile, machine: Machine, vm: Vm | None = None) -> int:
    """Those that can be disabled; shadow paging always ignores the guest's PAT (kvm_x86_vendor_init)."""
    return profile.quirks & ~(0 if machine.two_dimensional_paging else uapi.KVM_X86_QUIRK_IGNORE_GUEST_PAT)


CAPABILITIES: Mapping[int, Answer] = MappingProxyType(
    {
        uapi.KVM_CAP_USER_MEMORY: _one,
        uapi.KVM_CAP_NR_MEMSLOTS: lambda profile, machine, vm: USER_SLOTS,
        uapi.KVM_CAP_SYNC_MMU: _one,
        uapi.KVM_CAP_DESTROY_MEMORY_REGION_WORKS: _one,
        uapi.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: _one,
        uapi.KVM_CAP_READONLY_MEM: _one,
        uapi.KVM_CAP_DISABLE_QUIRKS: _one,
        uapi.KVM_CAP_MAX_VCPU_ID: lambda profile, machine, vm: machine.max_vcpu_ids,
        uapi.KVM_CAP_DISABLE_QUIRKS2: _quirks,
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
        uapi.KVM_CAP_GUEST_MEMFD_FLAGS: _guest_memfd_flags,
        uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES: _gmem_attributes,
    }
)


# Linux 6.1, and what v10 2/9 adds; that of the VM types was not read.
_SINCE_2023 = (
    uapi.KVM_CAP_USER_MEMORY2,
    uapi.KVM_CAP_MEMORY_FAULT_INFO,
    uapi.KVM_CAP_MEMORY_ATTRIBUTES,
    uapi.KVM_CAP_GUEST_MEMFD,
    uapi.KVM_CAP_VM_TYPES,
    uapi.KVM_CAP_PRE_FAULT_MEMORY,
    uapi.KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    uapi.KVM_CAP_GUEST_MEMFD_FLAGS,
    uapi.KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
)
_MEMORY_ATTRIBUTES_2023 = 225  # KVM_CAP_MEMORY_ATTRIBUTES; other capabilities have these numbers today
_CAPABILITIES_2023: Mapping[int, Answer] = MappingProxyType(
    {cap: answer for cap, answer in CAPABILITIES.items() if cap not in _SINCE_2023} | {_MEMORY_ATTRIBUTES_2023: _one}
)


def check_extension(profile: Profile, machine: Machine, vm: Vm | None, cap: int) -> int:
    """The answer on /dev/kvm (vm None) or on a VM; never an error (kvm_vm_ioctl_check_extension_generic)."""
    table = CAPABILITIES if profile.revision is None else _CAPABILITIES_2023
    answer = table.get(cap)
    return 0 if answer is None else answer(profile, machine, vm)


@dataclass(frozen=True, slots=True)
class EnableRequest:
    """KVM_ENABLE_CAP of a VM: the first word is all that is looked at."""

    vm: Vm
    cap: int
    first: int
    flags: int

    @property
    def unknown_quirks(self) -> int:
        """What the first word has that is no quirk of this kernel."""
        return self.first & ~_quirks(self.vm.profile, self.vm.machine)


_SOURCE = "kvm_vm_ioctl_enable_cap"
ENABLE_CHECKS: tuple[Check[EnableRequest], ...] = (
    flags_zero(_SOURCE),
    Check(
        "capability-can-be-enabled",
        errno.EINVAL,
        "the capability must be one that a VM can be asked for",
        _SOURCE,
        lambda r: r.cap in (uapi.KVM_CAP_DISABLE_QUIRKS, uapi.KVM_CAP_DISABLE_QUIRKS2),
        lambda r: f"cap={r.cap}",
    ),
    Check(
        "quirks-known",
        errno.EINVAL,
        "KVM_CAP_DISABLE_QUIRKS2 takes only quirks that the kernel has",
        _SOURCE,
        lambda r: r.cap == uapi.KVM_CAP_DISABLE_QUIRKS or not r.unknown_quirks,
        lambda r: f"args[0]={r.first:#x} unknown {r.unknown_quirks:#x}",
        "KVM_CHECK_EXTENSION of the capability has a bit for each",
    ),
)


def enable_cap(vm: Vm, cap: int, args: Sequence[int], flags: int) -> None:
    """KVM_ENABLE_CAP: quirks are disabled for good; other capabilities are listed with the known divergences."""
    request = EnableRequest(vm, cap, args[0] if args else 0, flags)
    require(ENABLE_CHECKS, request)
    vm.disabled_quirks |= request.first & ~request.unknown_quirks
