"""Real kernels as backends of the suite: which profile models each, and what a test may not ask of it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest

import guestmem
from guestmem.backend import Backend
from guestmem.recordings.calls import Fallocate, Madvise
from guestmem.recordings.ioctls import PreFault, SetMemoryAttributes, SetUserMemoryRegion
from guestmem.recordings.limits import Limits
from guestmem.recordings.operation import HostAddress, Operation
from guestmem.targets import profile_of_release

__all__ = ("hold", "profile_of_kvm", "profile_of_lab")

_ANYWHERE = HostAddress(abs=0)


def profile_of_kvm() -> tuple[str, str]:
    """The profile of this machine's own KVM and its release; "" and why there is none."""
    try:
        guestmem.open("kvm").backend.shutdown()
    except guestmem.BackendUnavailable as reason:
        return "", str(reason)
    return _named(platform.release())


def profile_of_lab() -> tuple[str, str]:
    """The profile of the lab's kernel and its release; "" and why there is none."""
    from guestmem.lab import DEFAULT, status

    found = status()
    for kernel in found.kernels:
        if kernel.key in found.usable and kernel.spec == DEFAULT:
            return _named(kernel.release)
    return "", "not built: guestmem lab build"


def _named(release: str) -> tuple[str, str]:
    found = profile_of_release(release)
    return (found.name, f"Linux {release}") if found else ("", f"no profile is of Linux {release}")


def hold(backend: Backend) -> Backend:
    """The backend, which is not asked for what would cost its host too much: the test skips and says why."""
    limits = Limits()

    def held(name: str, operation: Callable[..., Operation]) -> None:
        asked = getattr(backend, name)

        def ask(*arguments: Any, **more: Any) -> Any:
            refused = operation(*arguments).limit(limits)
            if refused is not None:
                pytest.skip(f"not asked of a real kernel: {refused}")
            return asked(*arguments, **more)

        setattr(backend, name, ask)

    held("set_user_memory_region", _region)
    held("set_user_memory_region2", _region)
    held("set_memory_attributes", _attributes)
    held("fallocate", _fallocate)
    held("pre_fault_memory", _pre_fault)
    held("madvise", _madvise)
    return backend


def _region(fd: int, slot: int, flags: int, gpa: int, size: int, *more: Any) -> Operation:
    return SetUserMemoryRegion(seq="", i=0, vm="", slot=0, flags=0, gpa=gpa, size=size, userspace_addr=_ANYWHERE)


def _attributes(fd: int, address: int, size: int, attributes: int, flags: int) -> Operation:
    return SetMemoryAttributes(seq="", i=0, vm="", address=address, size=size, attributes=attributes, flags=flags)


def _fallocate(fd: int, mode: int, offset: int, len: int) -> Operation:
    return Fallocate(seq="", i=0, fd="", mode=mode, offset=offset, len=len)


def _pre_fault(fd: int, gpa: int, size: int, flags: int) -> Operation:
    return PreFault(seq="", i=0, vcpu="", gpa=gpa, size=size, flags=flags)


def _madvise(addr: int, length: int, advice: int) -> Operation:
    return Madvise(seq="", i=0, map="", advice=advice, length=length)
