"""The PAGEMAP_SCAN ioctl on /proc/PID/pagemap: which pages of a process are of some kind (Linux 6.7 on)."""

from __future__ import annotations

import ctypes
import fcntl
import struct
from collections.abc import Iterator
from typing import Final

__all__ = ("IS_HUGE", "IS_PRESENT", "IS_SWAPPED", "scan")

IS_PRESENT: Final = 1 << 3
IS_SWAPPED: Final = 1 << 4
IS_HUGE: Final = 1 << 6  # mapped by a PMD or larger
_SCAN: Final = 0xC0606610  # linux/fs.h
_ARGUMENT: Final = struct.Struct("<12Q")  # struct pm_scan_arg
_RUN: Final = struct.Struct("<3Q")  # struct page_region
_RUNS: Final = 1 << 12  # that one call may return


def scan(pagemap: int, start: int, end: int, any_of: int) -> Iterator[tuple[int, int]]:
    """The runs of pages in [start, end) with any of these properties, ascending; bytes.

    pagemap is an open /proc/PID/pagemap. OSError: ENOTTY before Linux 6.7.
    """
    runs = ctypes.create_string_buffer(_RUN.size * _RUNS)
    while start < end:
        where = ctypes.addressof(runs)
        argument = bytearray(_ARGUMENT.pack(_ARGUMENT.size, 0, start, end, 0, where, _RUNS, 0, 0, 0, any_of, any_of))
        count = fcntl.ioctl(pagemap, _SCAN, argument)
        for index in range(count):
            low, high, _ = _RUN.unpack_from(runs, _RUN.size * index)
            yield low, high
        walked = _ARGUMENT.unpack(argument)[4]
        if walked <= start:
            return
        start = walked
