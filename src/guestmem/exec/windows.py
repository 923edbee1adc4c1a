"""Memory files as the vCPUs see them: mapped into the supervisor window by window.

A window is a part of a file, at most 1 GiB, mapped once and shown to every engine at one address of the engines' own
physical space. A file of many terabytes costs what is touched of it.
"""

from __future__ import annotations

import errno
import mmap
import os
from dataclasses import dataclass
from typing import Final

from guestmem.errors import HostSignal
from guestmem.exec import system
from guestmem.harness import PAGE_SIZE
from guestmem.model.contents import Contents
from guestmem.uapi import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, MAP_NORESERVE
from guestmem.units import align_down, align_up

__all__ = ("MappedFile", "ProgramFile", "Window", "punch")

_WINDOW: Final = 1 << 30


class _Addresses:
    """Where windows lie in the engines' physical space; never used again, so a cached address stays what it was."""

    def __init__(self) -> None:
        self.next = 1 << 32

    def take(self, size: int) -> int:
        taken = self.next
        self.next += align_up(size, _WINDOW)
        return taken


_ADDRESSES = _Addresses()


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """[start, start + len(view)) of a file. ``address``: in the engines' physical space, ``pointer``: in ours."""

    start: int
    view: memoryview
    address: int
    pointer: int


class MappedFile:
    """A file of which windows are mapped."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._windows: dict[int, Window] = {}

    def window(self, offset: int) -> Window:
        """The window with the byte at offset; HostSignal where the file ends before it."""
        index = offset // _WINDOW
        window = self._windows.get(index)
        if window is None or offset >= window.start + len(window.view):
            window = self._windows[index] = self._map(index * _WINDOW, offset)
        return window

    def close(self) -> None:
        """No more windows; those that engines have stay."""
        os.close(self.fd)

    def _map(self, start: int, offset: int) -> Window:
        length = min(_WINDOW, align_down(os.fstat(self.fd).st_size, PAGE_SIZE) - start)
        if offset - start >= length:
            raise HostSignal("SIGBUS", f"offset {offset:#x} is past the end of the file")
        mapped = mmap.mmap(self.fd, length, mmap.MAP_SHARED | MAP_NORESERVE, offset=start)
        return Window(start, memoryview(mapped), _ADDRESSES.take(length), system.address_of(mapped))


class ProgramFile(MappedFile):
    """Memory of the program that slots show: a source of host mappings for the model.

    Its bytes are in the file, so the model's own contents of it stay empty.
    """

    def __init__(self, fd: int, *, private: bool) -> None:
        super().__init__(fd)
        self.contents = Contents()
        self.private = private  # stands for what was private memory of the program: its pages die with the mapping

    def host_fault(self, start: int, end: int) -> None:
        """Past the end of the file is SIGBUS."""
        if end > align_up(os.fstat(self.fd).st_size, PAGE_SIZE):
            raise HostSignal("SIGBUS", f"offset {end - 1:#x} is past the end of the file")

    def discard(self, start: int, end: int) -> bool:
        """MADV_REMOVE punches a hole."""
        punch(self.fd, start, end)
        return True


def punch(fd: int, start: int, end: int) -> None:
    """Free [start, end) of a memory file; a file system that cannot is left as it is."""
    try:
        system.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, start, end - start)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
