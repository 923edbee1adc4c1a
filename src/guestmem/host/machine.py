"""This machine's VMs: the kernel is opened, looked at once, and given back."""

from __future__ import annotations

from guestmem.errors import BackendUnavailable
from guestmem.host.counters import survey_counters
from guestmem.host.document import HostReport
from guestmem.host.kernel import open_kernel
from guestmem.host.processes import LiveProcesses
from guestmem.host.survey import survey

__all__ = ("look_at_machine",)


def look_at_machine(
    pid: int | None = None,
    reader: str = "auto",
    *,
    every_space: bool = False,
    strips: bool = False,
    counters: bool = True,
) -> HostReport:
    """Every VM of this machine, or those of process ``pid``.

    Where kernel memory cannot be read, KVM's own counters stand in if ``counters`` allows and no reader was named;
    otherwise BackendUnavailable says in one line what is missing.
    """
    processes = LiveProcesses()
    if pid is not None:
        pid = processes.process_of(pid) or pid
    try:
        kernel = open_kernel(reader)
    except BackendUnavailable as missing:
        if not counters or reader != "auto":
            raise
        return survey_counters(processes, pid, str(missing))
    try:
        return survey(kernel, processes, pid, every_space=every_space, strips=strips)
    finally:
        kernel.memory.close()
