"""Which machine is behind a backend, asked through the same calls as everything else.

The model is then run as that machine. What the answers do not settle is not guessed: the kernel's version has to match
a profile, or be named by the user.
"""

from __future__ import annotations

import errno
from dataclasses import replace

from guestmem.backend import Backend
from guestmem.errors import KvmError
from guestmem.model.profiles import PROFILES, Machine, Profile
from guestmem.uapi import (
    KVM_CAP_MULTI_ADDRESS_SPACE,
    KVM_CAP_PRE_FAULT_MEMORY,
    KVM_CAP_VM_TYPES,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
)

__all__ = ("machine_behind", "profile_of_release")

_PAGE = 4096
_LIMIT_4_LEVELS, _LIMIT_5_LEVELS = (1 << 47) - _PAGE, (1 << 56) - _PAGE


def profile_of_release(release: str) -> Profile | None:
    """The profile of a kernel release ("6.12.117"): of the same version, else none."""
    version = ".".join(release.split("-")[0].split(".")[:2])
    return PROFILES.get(f"v{version}")


def machine_behind(backend: Backend, profile: Profile) -> Machine:
    """VM types, address spaces, paging, and the ends of both address spaces; KvmError, BackendUnavailable."""
    kvm = backend.open_kvm()
    vm = backend.create_vm(kvm, KVM_X86_DEFAULT_VM)
    offered = backend.check_extension(kvm, KVM_CAP_VM_TYPES)
    known = (KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM)
    return replace(
        profile.machine,
        vm_types=tuple(each for each in known if offered >> each & 1),
        smm=backend.check_extension(vm, KVM_CAP_MULTI_ADDRESS_SPACE) > 1,
        two_dimensional_paging=backend.check_extension(kvm, KVM_CAP_PRE_FAULT_MEMORY) > 0,
        gpa_bits=next(bits for bits in range(52, 31, -1) if _accepts(backend, vm, gpa=(1 << bits) - _PAGE)),
        user_limit=_LIMIT_5_LEVELS if _accepts(backend, vm, userspace_addr=1 << 47) else _LIMIT_4_LEVELS,
    )


def _accepts(backend: Backend, vm: int, gpa: int = 0, userspace_addr: int = 0) -> bool:
    """Whether a slot of one page can be set there."""
    try:
        backend.set_user_memory_region(vm, 0, 0, gpa, _PAGE, userspace_addr)
    except KvmError as refused:
        if refused.errno != errno.EINVAL:
            raise
        return False
    backend.set_user_memory_region(vm, 0, 0, 0, 0, 0)
    return True
