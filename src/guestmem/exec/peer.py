"""A thread of the program as the supervisor sees it: its memory, its descriptors, its mappings.

Addresses and sizes are bytes. What cannot be read or written is a KvmError with EFAULT, as the kernel's copy_from_user
would have it.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from guestmem import pagemap
from guestmem.errors import KvmError
from guestmem.exec import system
from guestmem.harness import PAGE_SIZE
from guestmem.uapi import PROT_EXEC, PROT_READ, PROT_WRITE

__all__ = ("ProgramMapping", "fetch", "fetch_path", "group_of", "link", "mappings", "present", "store")


@dataclass(frozen=True, slots=True)
class ProgramMapping:
    """One line of /proc/PID/maps: [start, end) shows its file from offset on; inode 0 for anonymous memory."""

    start: int
    end: int
    prot: int
    shared: bool
    offset: int
    inode: int
    path: str


def fetch(tid: int, address: int, size: int) -> bytes:
    """Bytes of the program; KvmError EFAULT."""
    try:
        return system.read_memory(tid, address, size)
    except OSError as error:
        raise _fault(error, address) from error


def store(tid: int, address: int, data: bytes) -> None:
    """Write into the program; KvmError EFAULT."""
    try:
        system.write_memory(tid, address, data)
    except OSError as error:
        raise _fault(error, address) from error


def fetch_path(tid: int, address: int) -> bytes:
    """A path of at most PATH_MAX bytes; b"" where it cannot be read, which the kernel will say itself."""
    found = b""
    while len(found) < PAGE_SIZE:
        size = min(256, PAGE_SIZE - address % PAGE_SIZE)
        try:
            found += system.read_memory(tid, address, size)
        except OSError:
            return b""
        end = found.find(b"\0")
        if end >= 0:
            return found[:end]
        address += size
    return b""


def link(tid: int, fd: int) -> str:
    """What a descriptor of the program is open on, "" if it is not open."""
    try:
        return os.readlink(f"/proc/{tid}/fd/{fd}")  # noqa: PTH115 (asked for every call, and Path is slower)
    except OSError:
        return ""


def group_of(tid: int) -> int:
    """The process of a thread (its thread group); ProcessLookupError."""
    try:
        status = Path(f"/proc/{tid}/status").read_text()
    except OSError as error:
        raise ProcessLookupError from error
    return int(status.partition("\nTgid:")[2].split(None, 1)[0])


def mappings(tid: int) -> Iterator[ProgramMapping]:
    """The program's mappings, ascending; ProcessLookupError."""
    try:
        text = Path(f"/proc/{tid}/maps").read_text()
    except OSError as error:
        raise ProcessLookupError from error
    for line in text.splitlines():
        words = line.split(None, 5)
        start, _, end = words[0].partition("-")
        access = words[1]
        prot = PROT_READ * (access[0] == "r") | PROT_WRITE * (access[1] == "w") | PROT_EXEC * (access[2] == "x")
        path = words[5] if len(words) > 5 else ""
        yield ProgramMapping(
            int(start, 16), int(end, 16), prot, access[3] == "s", int(words[2], 16), int(words[4]), path
        )


def present(tid: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The runs [start, end) of pages in the range that exist; what was never touched costs nothing."""
    fd = os.open(f"/proc/{tid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            yield from pagemap.scan(fd, start, end, pagemap.IS_PRESENT | pagemap.IS_SWAPPED)
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
            yield from _read_pagemap(fd, start, end)
    finally:
        os.close(fd)


def _read_pagemap(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Entry by entry: bit 63 is present, bit 62 swapped."""
    chunk = 1 << 16
    for first in range(start // PAGE_SIZE, end // PAGE_SIZE, chunk):
        count = min(chunk, end // PAGE_SIZE - first)
        entries = os.pread(fd, 8 * count, 8 * first)
        for index, (entry,) in enumerate(struct.iter_unpack("<Q", entries)):
            if entry >> 62:
                yield (first + index) * PAGE_SIZE, (first + index + 1) * PAGE_SIZE


def _fault(error: OSError, address: int) -> Exception:
    if error.errno == errno.ESRCH:
        return ProcessLookupError(errno.ESRCH, "the thread is gone")
    return KvmError(errno.EFAULT, f"the program's memory at {address:#x}", check="argument-readable")
