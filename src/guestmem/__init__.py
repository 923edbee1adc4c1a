"""KVM's guest-private memory, in Python: memory you can run, check and prove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from guestmem.errors import BackendUnavailable, HostSignal, KvmError, NotVisible
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
)
from guestmem.version import __version__

if TYPE_CHECKING:
    from guestmem.model.profiles import Machine
    from guestmem.objects import Kvm
    from guestmem.rules import Rule

__all__ = (
    "GUEST_MEMFD_FLAG_INIT_SHARED",
    "GUEST_MEMFD_FLAG_MMAP",
    "KVM_MEMORY_ATTRIBUTE_PRIVATE",
    "KVM_MEM_GUEST_MEMFD",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "KVM_X86_DEFAULT_VM",
    "KVM_X86_SW_PROTECTED_VM",
    "BackendUnavailable",
    "HostSignal",
    "KvmError",
    "NotVisible",
    "__version__",
    "open",
)


def open(
    backend: Literal["model", "kvm", "lab"] = "model",
    *,
    profile: str | None = None,
    machine: Machine | None = None,
    rule: Rule | str | None = None,
) -> Kvm:
    """Open /dev/kvm of a backend, as one fresh process. Never falls back from one backend to another.

    "model": profile ("v6.12", "v6.18", "v7.2", "next"; else v7.2), machine and rule (an alignment rule or its name,
    for profile next) say which kernel and host it is. "kvm": this machine's kernel, BackendUnavailable where it has
    none. "lab": a kernel booted for this, ended with it; BackendUnavailable if it is not built (``guestmem.lab``). A
    real kernel is what it is, so it takes none of the three. ValueError for a name that does not exist.
    """
    # Imported here so that `guestmem --help` does not pay for a backend.
    from guestmem.objects import Kvm

    if backend in ("kvm", "lab") and (profile is not None or machine is not None or rule is not None):
        raise ValueError("profile, machine and rule are the model's; a real kernel cannot be told what it is")
    if backend == "kvm":
        from guestmem.kvm import KvmBackend

        return Kvm(KvmBackend())
    if backend == "lab":
        from guestmem.lab import open_backend

        return Kvm(open_backend())
    if backend != "model":
        raise ValueError(f"no backend {backend!r}; there are model, kvm and lab")
    from guestmem.model.process import Process
    from guestmem.model.profiles import profile_named
    from guestmem.rules import DEFAULT, rule_named

    chosen = rule_named(rule) if isinstance(rule, str) else rule or DEFAULT
    return Kvm(Process(profile_named(profile or "v7.2"), machine, chosen))
