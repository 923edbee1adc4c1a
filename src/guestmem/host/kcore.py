"""Kernel memory through /proc/kcore: an ELF core file whose segments are the kernel's address ranges.

Needs CONFIG_PROC_KCORE and CAP_SYS_RAWIO; lockdown=confidentiality refuses it, lockdown=integrity does not.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

from guestmem.host.memory import Unreadable, pages_one_by_one

__all__ = ("KcoreMemory",)

_PATH = Path("/proc/kcore")
_PROGRAM = struct.Struct("<IIQQQQQQ")  # type, flags, offset, vaddr, paddr, filesz, memsz, align
_LOAD = 1
_NO_ADDRESS = (0, (1 << 64) - 1)
_KERNEL_TEXT = 0xFFFF_FFFF_8000_0000  # the kernel's image has a physical address too, and is not the direct map


class KcoreMemory:
    """Reads by pread; OSError from the constructor where the file is missing or refused."""

    name = "kcore"

    def __init__(self, path: Path = _PATH) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._segments = sorted(_segments(self._fd))
        except struct.error:
            os.close(self._fd)
            raise OSError(8, "is no ELF core file", str(path)) from None  # ENOEXEC
        self._starts = [segment[0] for segment in self._segments]

    @property
    def direct_map(self) -> int | None:
        """The virtual address of physical address 0, where a segment of RAM tells both; None otherwise."""
        for start, _, _, physical in self._segments:
            if physical not in _NO_ADDRESS and physical < start < _KERNEL_TEXT:
                return start - physical
        return None

    def read(self, address: int, length: int) -> bytes:
        """As KernelMemory says."""
        index = bisect_right(self._starts, address) - 1
        if index < 0 or address + length > self._segments[index][1]:
            raise Unreadable(address, length)
        start, _, offset, _ = self._segments[index]
        try:
            data = os.pread(self._fd, length, address - start + offset)
        except OSError:
            raise Unreadable(address, length) from None
        if len(data) != length:
            raise Unreadable(address, length)
        return data

    def read_pages(self, addresses: Sequence[int]) -> tuple[bytes, list[int]]:
        """As KernelMemory says."""
        return pages_one_by_one(self, addresses)

    def close(self) -> None:
        """As KernelMemory says."""
        os.close(self._fd)


def _segments(fd: int) -> list[tuple[int, int, int, int]]:
    """(start, end, offset in the file, physical address) of each range of addresses."""
    header = os.pread(fd, 64, 0)
    table, size, count = struct.unpack_from("<Q", header, 32)[0], *struct.unpack_from("<HH", header, 54)
    programs = os.pread(fd, size * count, table)
    found = []
    for index in range(count):
        kind, _, offset, virtual, physical, _, length, _ = _PROGRAM.unpack_from(programs, index * size)
        if kind == _LOAD:
            found.append((virtual, virtual + length, offset, physical))
    return found
