"""From a kernel in the cache to a running lab."""

from __future__ import annotations

import os

from guestmem.lab.backend import LabBackend
from guestmem.lab.image import make_image
from guestmem.lab.kernel import DEFAULT, image_of
from guestmem.lab.machine import LabMachine
from guestmem.lab.qemu import Hardware

__all__ = ("boot", "open_backend")


def boot(kernel: str = DEFAULT, hardware: Hardware | None = None) -> LabMachine:
    """Boot a lab; close it when done. kernel is a version or a path, as it was given to build, or a built kernel.

    BackendUnavailable if that kernel is not built or there is no QEMU; LabFailed if the machine does not come up.
    """
    found = image_of(kernel)
    image = make_image()
    try:
        return LabMachine.boot(found, image, hardware or Hardware())
    finally:
        os.close(image)


def open_backend(kernel: str = DEFAULT, hardware: Hardware | None = None) -> LabBackend:
    """Boot a lab with one backend in it, which ends it. For many on one lab: ``LabBackend.on(boot())``."""
    machine = boot(kernel, hardware)
    try:
        return LabBackend.on(machine, owns_machine=True)
    except BaseException:
        machine.close()
        raise
