"""What /proc tells about the processes that hold VMs: names, descriptors, mappings, and what is mapped huge.

Everything is behind ``Processes``, so that a recorded process answers as well.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from guestmem import pagemap
from guestmem.host.mappings import HostMapping, ThpSettings, parse_smaps, read_thp_settings

__all__ = ("VM_LINK", "LiveProcesses", "Processes")

VM_LINK = "anon_inode:kvm-vm"
_PROC = Path("/proc")
_VMMS = (
    ("qemu-system-", "qemu"),
    ("qemu-kvm", "qemu"),
    ("cloud-hypervisor", "cloud-hypervisor"),
    ("firecracker", "firecracker"),
)


class Processes(Protocol):
    """Processes by their number as this program sees it."""

    def process_of(self, thread: int) -> int | None:
        """The process that a thread belongs to; None when it is gone."""
        ...

    def name(self, pid: int) -> str:
        """The name the kernel shows for it (at most 15 characters), "?" when it is gone."""
        ...

    def vmm(self, pid: int) -> str:
        """ "qemu", "cloud-hypervisor", "firecracker", or "" for another program."""
        ...

    def vm_descriptors(self, pid: int | None) -> Iterator[tuple[int, int]]:
        """(pid, fd) of every descriptor of a VM; of one process, or of all that can be seen."""
        ...

    def mappings(self, pid: int) -> list[HostMapping]:
        """Its address space, ascending; empty when it cannot be read."""
        ...

    def huge_pieces(self, pid: int, start: int, end: int) -> list[tuple[int, int]] | None:
        """What of [start, end) the host maps by 2M or larger, ascending; None where the kernel cannot tell."""
        ...


class LiveProcesses:
    """The processes of this machine, through /proc."""

    def __init__(self, root: Path = _PROC) -> None:
        self._root = root
        self._thp: ThpSettings | None = None

    def process_of(self, thread: int) -> int | None:
        """As Processes says."""
        return self._status_number(thread, "Tgid")

    def name(self, pid: int) -> str:
        """As Processes says."""
        try:
            return (self._root / str(pid) / "comm").read_text(errors="replace").strip()
        except OSError:
            return "?"

    def vmm(self, pid: int) -> str:
        """As Processes says: by the name of the program's file."""
        try:
            program = (self._root / str(pid) / "exe").readlink().name
        except OSError:
            return ""
        return next((vmm for start, vmm in _VMMS if program.startswith(start)), "")

    def vm_descriptors(self, pid: int | None) -> Iterator[tuple[int, int]]:
        """As Processes says."""
        for number in [pid] if pid is not None else self._numbers():
            directory = self._root / str(number) / "fd"
            with suppress(OSError):  # gone, or not ours to see
                for entry in directory.iterdir():
                    with suppress(OSError):
                        if str(entry.readlink()) == VM_LINK:
                            yield number, int(entry.name)

    def mappings(self, pid: int) -> list[HostMapping]:
        """As Processes says."""
        if self._thp is None:
            self._thp = read_thp_settings()
        try:
            text = (self._root / str(pid) / "smaps").read_text(errors="replace")
        except OSError:
            return []
        disabled = self._status_number(pid, "THP_enabled") == 0
        return list(parse_smaps(text, ThpSettings(False, False) if disabled else self._thp))

    def huge_pieces(self, pid: int, start: int, end: int) -> list[tuple[int, int]] | None:
        """As Processes says: PAGEMAP_SCAN, Linux 6.7 on."""
        try:
            file = os.open(self._root / str(pid) / "pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return list(pagemap.scan(file, start, end, pagemap.IS_HUGE))
        except OSError as error:
            if error.errno in (errno.ENOTTY, errno.EINVAL, errno.ESRCH, errno.EPERM):
                return None
            raise
        finally:
            os.close(file)

    def _numbers(self) -> list[int]:
        return sorted(int(entry.name) for entry in self._root.iterdir() if entry.name.isdecimal())

    def _status_number(self, pid: int, name: str) -> int | None:
        try:
            text = (self._root / str(pid) / "status").read_text(errors="replace")
        except OSError:
            return None
        for line in text.splitlines():
            key, _, value = line.partition(":")
            if key == name and value.split():
                return int(value.split()[0])
        return None
