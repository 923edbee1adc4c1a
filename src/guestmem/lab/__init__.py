"""A real Linux kernel with software-protected VMs, booted under QEMU's emulation: no KVM, no special hardware.

``build`` makes the kernel once, ``open_backend`` boots it and gives a backend that is a process in it, ``exec_`` and
``shell`` run programs there; ``status`` and ``clean`` tell and remove what is in the cache.
"""

from guestmem.lab.backend import LabBackend
from guestmem.lab.cache import clean
from guestmem.lab.channel import Call
from guestmem.lab.errors import BuildFailed, LabFailed, SessionFailed
from guestmem.lab.kernel import DEFAULT, Kernel, Progress, build
from guestmem.lab.machine import Machine
from guestmem.lab.opening import boot, open_backend
from guestmem.lab.programs import exec_, shell
from guestmem.lab.qemu import Hardware
from guestmem.lab.status import Status, status

__all__ = (
    "DEFAULT",
    "BuildFailed",
    "Call",
    "Hardware",
    "Kernel",
    "LabBackend",
    "LabFailed",
    "Machine",
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
