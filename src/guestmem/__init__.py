"""KVM's guest-private memory, in Python: memory you can run, check and prove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from guestmem.errors import BackendUnavailable, HostSignal, InputError, KvmError, NotVisible
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_CAP_DESTROY_MEMORY_REGION_WORKS,
    KVM_CAP_DIRTY_LOG_RING,
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CAP_DISABLE_QUIRKS,
    KVM_CAP_DISABLE_QUIRKS2,
    KVM_CAP_GUEST_MEMFD,
    KVM_CAP_GUEST_MEMFD_FLAGS,
    KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
    KVM_CAP_JOIN_MEMORY_REGIONS_WORKS,
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
    KVM_CAP_MAX_VCPU_ID,
    KVM_CAP_MEMORY_ATTRIBUTES,
    KVM_CAP_MEMORY_FAULT_INFO,
    KVM_CAP_MULTI_ADDRESS_SPACE,
    KVM_CAP_NR_MEMSLOTS,
    KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_READONLY_MEM,
    KVM_CAP_SYNC_MMU,
    KVM_CAP_USER_MEMORY,
    KVM_CAP_USER_MEMORY2,
    KVM_CAP_VM_TYPES,
    KVM_CAP_X86_APIC_BUS_CYCLES_NS,
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_UNKNOWN,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_PRIVATE,
    KVM_MEM_READONLY,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_QUIRK_IGNORE_GUEST_PAT,
    KVM_X86_QUIRK_SLOT_ZAP_ALL,
    KVM_X86_SW_PROTECTED_VM,
)
from guestmem.version import __version__

if TYPE_CHECKING:
    from guestmem.backend import Exit
    from guestmem.layout.ask import check
    from guestmem.model.profiles import Machine
    from guestmem.objects import GuestMemfd, Kvm, Vcpu, Vm
    from guestmem.rules import Rule

__all__ = (
    "GUEST_MEMFD_FLAG_HUGETLB",
    "GUEST_MEMFD_FLAG_INIT_SHARED",
    "GUEST_MEMFD_FLAG_MMAP",
    "KVM_CAP_DESTROY_MEMORY_REGION_WORKS",
    "KVM_CAP_DIRTY_LOG_RING",
    "KVM_CAP_DIRTY_LOG_RING_ACQ_REL",
    "KVM_CAP_DISABLE_QUIRKS",
    "KVM_CAP_DISABLE_QUIRKS2",
    "KVM_CAP_GUEST_MEMFD",
    "KVM_CAP_GUEST_MEMFD_FLAGS",
    "KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES",
    "KVM_CAP_JOIN_MEMORY_REGIONS_WORKS",
    "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2",
    "KVM_CAP_MAX_VCPU_ID",
    "KVM_CAP_MEMORY_ATTRIBUTES",
    "KVM_CAP_MEMORY_FAULT_INFO",
    "KVM_CAP_MULTI_ADDRESS_SPACE",
    "KVM_CAP_NR_MEMSLOTS",
    "KVM_CAP_PRE_FAULT_MEMORY",
    "KVM_CAP_READONLY_MEM",
    "KVM_CAP_SYNC_MMU",
    "KVM_CAP_USER_MEMORY",
    "KVM_CAP_USER_MEMORY2",
    "KVM_CAP_VM_TYPES",
    "KVM_CAP_X86_APIC_BUS_CYCLES_NS",
    "KVM_EXIT_MEMORY_FAULT",
    "KVM_EXIT_MMIO",
    "KVM_EXIT_SHUTDOWN",
    "KVM_EXIT_UNKNOWN",
    "KVM_MEMORY_ATTRIBUTE_PRIVATE",
    "KVM_MEMORY_EXIT_FLAG_PRIVATE",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_PRIVATE",
    "KVM_MEM_READONLY",
    "KVM_X86_DEFAULT_VM",
    "KVM_X86_QUIRK_IGNORE_GUEST_PAT",
    "KVM_X86_QUIRK_SLOT_ZAP_ALL",
    "KVM_X86_SW_PROTECTED_VM",
    "BackendUnavailable",
    "Exit",
    "GuestMemfd",
    "HostSignal",
    "Kvm",
    "KvmError",
    "NotVisible",
    "Vcpu",
    "Vm",
    "__version__",
    "check",
    "open",
)

# Looked up when they are used, so that `import guestmem` and `guestmem --help` stay light.
_HOMES = {
    "Exit": "backend",
    "GuestMemfd": "objects",
    "Kvm": "objects",
    "Vcpu": "objects",
    "Vm": "objects",
    "check": "layout.ask",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'guestmem' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"guestmem.{_HOMES[name]}"), name)


def open(
    backend: Literal["model", "kvm", "lab"] = "model",
    *,
    profile: str | None = None,
    machine: Machine | None = None,
    rule: Rule | str | None = None,
    in_place: bool | None = None,
    kernel: str | None = None,
) -> Kvm:
    """Open /dev/kvm of a backend, as one fresh process. Never falls back from one backend to another.

    "model": profile ("v6.12", "v6.18", "v7.2", "v7.3", "v7.4", "next", "restrictedmem"; else v7.3), machine, rule (an
    alignment rule or its name, for the last two) and in_place (for v7.4: attributes belong to files, or, switched off,
    to VMs) say which kernel and host it is. "kvm": this machine's kernel; BackendUnavailable where it has none. "lab":
    a kernel booted for this, ended with it, kernel a version such as "7.3" or a path; BackendUnavailable if it is not
    built (``guestmem.lab``). A real kernel is what it is, so it takes none of the first four. ValueError for a name
    that does not exist.
    """
    from guestmem.objects import Kvm

    if backend in ("kvm", "lab") and (profile, machine, rule, in_place) != (None,) * 4:
        raise InputError("profile, machine, rule and in_place are the model's; a real kernel has its own")
    if kernel is not None and backend != "lab":
        raise InputError("kernel is the lab's: the model has profiles, and this machine its own kernel")
    if backend == "kvm":
        from guestmem.kvm import KvmBackend

        return Kvm(KvmBackend())
    if backend == "lab":
        from guestmem.lab import open_backend

        return Kvm(open_backend(kernel) if kernel else open_backend())
    if backend != "model":
        raise InputError(f"no backend {backend!r}; there are model, kvm and lab")
    from guestmem.model.process import Process
    from guestmem.model.profiles import NEWEST, profile_named
    from guestmem.rules import rule_named

    chosen = rule_named(rule) if isinstance(rule, str) else rule
    version = profile_named(profile) if profile else NEWEST
    if in_place is not None:
        machine = (machine or version.machine).converting(in_place=in_place)
    return Kvm(Process(version, machine, chosen))
