"""``guestmem lab status``, as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from guestmem.lab import Kernel, Status
from guestmem.report.json_text import json_text

__all__ = ("lab_json", "lab_lines")


def lab_json(found: Status) -> str:
    """One object: the fields of Status, and whether a lab can be booted."""
    return json_text({"format": "guestmem-lab/1", "ready": found.is_ready, **msgspec.to_builtins(found)})


def lab_lines(found: Status) -> Iterator[str]:
    """QEMU, the cache, each kernel with what is to be done about it, and whether a lab can be booted."""
    yield f"QEMU      {found.qemu or 'none; on Debian: apt install qemu-system-x86'}"
    yield f"cache     {found.directory}, {found.size / 1e6:.0f} MB"
    for kernel in found.kernels:
        problem = "" if kernel.key in found.usable else "; of another configuration: guestmem lab build"
        if kernel.key in found.damaged:
            problem = f"; damaged, {found.damaged[kernel.key]}: guestmem lab build --kernel {kernel.spec}"
        made = "package" if kernel.is_packaged else f"{kernel.compiler}, {kernel.seconds:.0f} s"
        yield f"kernel    {kernel.spec}: {kernel.release}, {made}{_lacks(kernel)}{problem}"
    if not found.kernels:
        yield "kernel    none: guestmem lab build"
    for key in found.unfinished:
        yield f"kernel    {key} is not finished: guestmem lab build goes on"
    if found.missing_tools:
        yield f"to build  apt install {' '.join(found.missing_tools)}"
    yield f"ready     {'yes' if found.is_ready else 'no'}"


def _lacks(kernel: Kernel) -> str:
    """What cannot be done on it, as far as that is known."""
    lacks = ["software-protected VMs"] if "CONFIG_KVM_SW_PROTECTED_VM" in kernel.without else []
    lacks += [] if kernel.host_files else ["programs of this host (9p)"]
    return f", without {' and '.join(lacks)}" if lacks else ""
