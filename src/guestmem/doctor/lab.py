"""Whether the lab can be booted, and what it lacks."""

from __future__ import annotations

from guestmem.doctor.value import Finding, State, Values
from guestmem.lab.inventory import Status

__all__ = ("examine_lab",)


def examine_lab(status: Status) -> Finding:
    """Subject "lab"."""
    kernels = [kernel.release for kernel in status.kernels if kernel.key in status.usable]
    values: Values = {"qemu": status.qemu, "kernels": kernels, "missing_tools": list(status.missing_tools)}
    if status.is_ready:
        return Finding("lab", State.OK, f"ready: {', '.join(kernels)}", values=values)
    causes, remedies = [], []
    if not status.qemu:
        causes.append("no QEMU")
        remedies.append("apt install qemu-system-x86")
    if not kernels:
        causes.append("no kernel is built")
        if status.missing_tools:
            remedies.append(f"apt install {' '.join(status.missing_tools)}")
        remedies.append("guestmem lab build")
    return Finding("lab", State.LIMITED, "cannot be booted yet", ", ".join(causes), "; ".join(remedies), values)
