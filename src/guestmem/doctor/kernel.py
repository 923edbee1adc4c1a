"""The running kernel: which it is, whether guest_memfd can be in it, and which profile models it."""

from __future__ import annotations

import re

from guestmem.doctor.host import Host
from guestmem.doctor.value import Finding, State
from guestmem.targets import profile_of_release

__all__ = ("examine_kernel",)

_FIRST = (6, 8)  # guest_memfd and memory attributes were merged for 6.8


def examine_kernel(host: Host) -> Finding:
    """Subject "kernel"."""
    release = host.read("/proc/sys/kernel/osrelease")
    version = re.match(r"(\d+)\.(\d+)", release or "")
    if release is None or version is None:
        return Finding("kernel", State.UNKNOWN, "not told", "/proc/sys/kernel/osrelease cannot be read")
    profile = profile_of_release(release)
    modelled = f"modelled by profile {profile.name}" if profile else "no profile of the model is of this version"
    found = f"Linux {release}; {modelled}"
    values = {"release": release, "profile": profile.name if profile else ""}
    if (int(version[1]), int(version[2])) < _FIRST:
        cause = "guest_memfd and memory attributes came with Linux 6.8"
        return Finding("kernel", State.MISSING, found, cause, "use a newer kernel, or the lab", dict(values))
    return Finding("kernel", State.OK, found, values=dict(values))
