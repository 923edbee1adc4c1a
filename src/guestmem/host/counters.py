"""The fallback where kernel memory cannot be read: KVM's own counters below /sys/kernel/debug/kvm.

They say how many leaves of each size a VM has, and nothing of slots or reasons. Each VM's directory is named by the
thread that made it and the descriptor it got. They stay readable under both levels of lockdown.
"""

from __future__ import annotations

import time
from pathlib import Path

from guestmem.errors import BackendUnavailable
from guestmem.host.document import FORMAT, SIZES, HostReport, HostVm, VmTotals
from guestmem.host.processes import Processes
from guestmem.units import GIB, KIB, MIB

__all__ = ("survey_counters",)

_DIRECTORY = Path("/sys/kernel/debug/kvm")
_FILES = (("pages_4k", 4 * KIB), ("pages_2m", 2 * MIB), ("pages_1g", GIB))


def survey_counters(processes: Processes, pid: int | None, why: str, directory: Path = _DIRECTORY) -> HostReport:
    """Every VM's leaves; ``why`` goes into each note. BackendUnavailable where debugfs cannot be read either."""
    start = time.monotonic()
    try:
        names = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
    except OSError as error:
        raise BackendUnavailable(f"{why}; nor can KVM's counters: {directory}: {error.strerror}") from None
    vms = []
    for name in names:
        thread, dash, _ = name.partition("-")
        if not dash or not thread.isdecimal():
            continue
        owner = processes.process_of(int(thread)) or int(thread)
        if pid is not None and owner != pid:
            continue
        try:
            counted = [int((directory / name / file).read_text()) for file, _ in _FILES]
        except (OSError, ValueError):
            continue  # the VM is gone
        mapped = {size: count * bytes_ for size, count, (_, bytes_) in zip(SIZES, counted, _FILES, strict=True)}
        leaves = dict(zip(SIZES, counted, strict=True))
        empty = dict.fromkeys(SIZES, 0)
        totals = VmTotals(None, empty, mapped, [], leaves, leaves)
        vms.append(HostVm(owner, processes.name(owner), [], totals, processes.vmm(owner), None, "counters only"))
    return HostReport(FORMAT, vms, "debugfs", round(time.monotonic() - start, 3), False)
