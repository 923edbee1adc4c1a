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
    backend: Literal["model"] = "model",
    *,
    profile: str = "v7.2",
    machine: Machine | None = None,
    rule: Rule | str | None = None,
) -> Kvm:
    """Open /dev/kvm of a backend, as one fresh process. Never falls back from one backend to another.

    profile ("v6.12", "v6.18", "v7.2", "next"), machine and rule (an alignment rule or its name, for profile next) say
    which kernel and host the model is. ValueError for a name that does not exist.
    """
    # Imported here so that `guestmem --help` does not pay for the model.
    from guestmem.model.process import Process
    from guestmem.model.profiles import profile_named
    from guestmem.objects import Kvm
    from guestmem.rules import DEFAULT, rule_named

    if backend != "model":
        raise ValueError(f"no backend {backend!r}; there is model")
    chosen = rule_named(rule) if isinstance(rule, str) else rule or DEFAULT
    return Kvm(Process(profile_named(profile), machine, chosen))
