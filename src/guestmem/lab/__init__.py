"""A real Linux kernel with software-protected VMs, booted under QEMU's emulation: no KVM, no special hardware.

``build`` makes the kernel once, ``open_backend`` boots it and gives a backend that is a process in it, ``exec_`` and
``shell`` run programs there; ``status`` and ``clean`` report and remove what is in the cache.

The names are looked up when they are used: the guest's half of this package starts under emulation, where importing
the host's half would take a second.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guestmem.lab.backend import LabBackend
    from guestmem.lab.cache import clean
    from guestmem.lab.channel import Call
    from guestmem.lab.errors import BuildFailed, LabFailed, SessionFailed
    from guestmem.lab.inventory import Status, status
    from guestmem.lab.kernel import DEFAULT, Kernel, Progress, build
    from guestmem.lab.machine import LabMachine
    from guestmem.lab.opening import boot, open_backend
    from guestmem.lab.programs import exec_, shell
    from guestmem.lab.qemu import Hardware

__all__ = (
    "DEFAULT",
    "BuildFailed",
    "Call",
    "Hardware",
    "Kernel",
    "LabBackend",
    "LabFailed",
    "LabMachine",
    "Progress",
    "SessionFailed",
    "Status",
    "boot",
    "build",
    "clean",
    "exec_",
    "open_backend",
    "shell",
    "status",
)

_HOMES = {
    "backend": ("LabBackend",),
    "cache": ("clean",),
    "channel": ("Call",),
    "errors": ("BuildFailed", "LabFailed", "SessionFailed"),
    "kernel": ("DEFAULT", "Kernel", "Progress", "build"),
    "machine": ("LabMachine",),
    "opening": ("boot", "open_backend"),
    "programs": ("exec_", "shell"),
    "qemu": ("Hardware",),
    "inventory": ("Status", "status"),
}


def __getattr__(name: str) -> object:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"guestmem.lab.{module}"), name)
    raise AttributeError(f"module 'guestmem.lab' has no attribute {name!r}")
