"""From a kernel in the cache to a running lab."""

from __future__ import annotations

import os
from collections.abc import Sequence

from guestmem.errors import BackendUnavailable
from guestmem.lab.backend import LabBackend
from guestmem.lab.image import make_image
from guestmem.lab.kernel import DEFAULT, bootable
from guestmem.lab.machine import LabMachine
from guestmem.lab.qemu import Hardware

__all__ = ("boot", "open_backend")


def boot(kernel: str = DEFAULT, hardware: Hardware | None = None, *, modules: Sequence[str] = ()) -> LabMachine:
    """Boot a lab; close it when done. kernel is a version, package or path, as it was given to build, or a kernel.

    modules are more of Python's that the guest is given, for ``LabBackend.work``. BackendUnavailable if that kernel is
    not built or there is no QEMU; LabFailed if the machine does not come up.
    """
    found, wanted = bootable(kernel), hardware or Hardware()
    if wanted.host_files and not found.host_files:
        raise BackendUnavailable(
            f"{kernel} has no 9p, so programs of this host cannot run on it; build its version from source: "
            "guestmem lab build --kernel VERSION"
        )
    image = make_image(found.modules, modules)
    try:
        return LabMachine.boot(found, image, wanted)
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
