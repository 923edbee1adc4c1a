"""Stand-ins: the files that the program's descriptors of emulated objects are really open on.

Each object is a memory file of the supervisor; the program gets another open file of it. So dup, fcntl, poll, fork,
exec, sending over sockets and the numbers of descriptors are the kernel's. The name of the file, which a descriptor's
link in /proc shows, holds the object's number. inotify says when the last descriptor and the last mapping of the
program's open file are gone, which is when a kernel would release the object.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from typing import Final

from guestmem.exec import system

__all__ = ("StandIn", "StandIns", "number_in")

_CLOSED: Final = 0x18  # IN_CLOSE_WRITE | IN_CLOSE_NOWRITE, linux/inotify.h
_EVENT: Final = struct.Struct("<iIII")
_PREFIX: Final = "guestmem-exec"
_LINK: Final = f"/memfd:{_PREFIX}:"


class StandIn:
    """One memory file. ``size`` in bytes is what the program may map of it; ``fd`` is the supervisor's."""

    def __init__(self, number: int, kind: str, size: int) -> None:
        self.number = number
        self.fd = os.memfd_create(f"{_PREFIX}:{number}:{kind}", os.MFD_CLOEXEC)
        self.size = size
        if size:
            os.ftruncate(self.fd, size)

    def map(self) -> mmap.mmap:
        """The supervisor's own mapping of all of it."""
        return mmap.mmap(self.fd, self.size)

    def open(self) -> int:
        """Another open file of it, to be given away; inotify tells nothing of the descriptor that memfd_create made."""
        return os.open(f"/proc/self/fd/{self.fd}", os.O_RDWR | os.O_CLOEXEC)

    def close(self) -> None:
        """The supervisor needs it no more."""
        with contextlib.suppress(OSError):
            os.close(self.fd)


class StandIns:
    """All that are there, by their number."""

    def __init__(self) -> None:
        self.fd = self._inotify = system.inotify_init()  # readable when something was released
        self._watched: dict[int, int] = {}  # watch -> number
        self._watches: dict[int, int] = {}  # number -> watch
        self._next = 1

    def make(self, kind: str, size: int = 0) -> StandIn:
        """A new stand-in, watched once it is given away."""
        made = StandIn(self._next, kind, size)
        self._next += 1
        return made

    def watch(self, standin: StandIn) -> None:
        """Tell when the open file that is about to be given away is closed."""
        watch = system.inotify_add_watch(self._inotify, f"/proc/self/fd/{standin.fd}", _CLOSED)
        self._watched[watch] = standin.number
        self._watches[standin.number] = watch

    def forget(self, standin: StandIn) -> None:
        """It was not given away after all, or is released: nothing more will be told of it."""
        watch = self._watches.pop(standin.number, None)
        if watch is not None:
            self._watched.pop(watch, None)
            system.inotify_rm_watch(self._inotify, watch)

    def released(self) -> list[int]:
        """The numbers of those whose last descriptor and mapping went since the last question."""
        try:
            data = os.read(self._inotify, 65536)
        except BlockingIOError:
            return []
        numbers = []
        at = 0
        while at < len(data):
            watch, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & _CLOSED and watch in self._watched:
                numbers.append(self._watched[watch])
        return numbers


def number_in(link: str) -> int | None:
    """The object's number in what a descriptor's link or a mapping's path shows, None if it is no stand-in.

    >>> number_in("/memfd:guestmem-exec:12:vm (deleted)")
    12
    """
    if not link.startswith(_LINK):
        return None
    number = link[len(_LINK) :].partition(":")[0]
    return int(number) if number.isdecimal() else None
