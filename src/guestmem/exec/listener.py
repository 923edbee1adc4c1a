"""Seccomp user notification: receive a call of the program, answer it, put a descriptor into the program.

Knows nothing of KVM. Numbers and structures are those of linux/seccomp.h.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import struct
from dataclasses import dataclass
from typing import Final

__all__ = ("ProgramCall", "Gone", "Listener")


def _number(minor: int, size: int, direction: int) -> int:
    return direction << 30 | size << 16 | ord("!") << 8 | minor


_RECV: Final = _number(0, 80, 3)
_SEND: Final = _number(1, 24, 3)
_ID_VALID: Final = _number(2, 8, 1)
_ADDFD: Final = _number(3, 24, 1)
_SET_FLAGS: Final = _number(4, 8, 1)
_CONTINUE: Final = 1  # SECCOMP_USER_NOTIF_FLAG_CONTINUE
_ADD_AND_ANSWER: Final = 2  # SECCOMP_ADDFD_FLAG_SEND
_SYNC_WAKE_UP: Final = 1  # SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, since 6.6
_NOTIFICATION = struct.Struct("<QIIiIQ6Q")
_ANSWER = struct.Struct("<QqiI")
_EMPTY = bytes(80)


class Gone(Exception):
    """The call is no longer waited for: a signal interrupted it, or its thread is dead."""


@dataclass(slots=True)
class ProgramCall:
    """One system call that waits for its answer."""

    id: int
    tid: int
    number: int
    after: int  # address of the instruction after the system call
    arguments: tuple[int, int, int, int, int, int]


class Listener:
    """The supervisor's end of a filter."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._request = bytearray(_EMPTY)
        with contextlib.suppress(OSError):  # an older kernel: only slower
            fcntl.ioctl(fd, _SET_FLAGS, _SYNC_WAKE_UP)

    def receive(self) -> ProgramCall | None:
        """The next call; None if it was gone before it could be read."""
        request = self._request
        request[:] = _EMPTY
        try:
            fcntl.ioctl(self.fd, _RECV, request, True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINTR):
                return None
            raise
        id, tid, _, number, _, after, *arguments = _NOTIFICATION.unpack(request)
        return ProgramCall(id, tid, number, after, tuple(arguments))

    def is_waiting(self, id: int) -> bool:
        """Whether the call still waits."""
        try:
            fcntl.ioctl(self.fd, _ID_VALID, struct.pack("<Q", id))
        except OSError:
            return False
        return True

    def answer(self, id: int, result: int) -> None:
        """The call returns result, a negative errno for a failure; Gone."""
        self._send(_ANSWER.pack(id, 0, result, 0) if result < 0 else _ANSWER.pack(id, result, 0, 0))

    def go_on(self, id: int) -> None:
        """The kernel does the call; Gone."""
        self._send(_ANSWER.pack(id, 0, 0, _CONTINUE))

    def add(self, id: int, fd: int, flags: int, *, answer: bool) -> int:
        """Put a descriptor of ours into the program (flags: O_CLOEXEC or 0); its number there.

        With answer, the call returns it. Gone; OSError (EMFILE) where the program has no room.
        """
        mode = _ADD_AND_ANSWER if answer else 0
        try:
            number: int = fcntl.ioctl(self.fd, _ADDFD, bytearray(struct.pack("<QIIII", id, mode, fd, 0, flags)), True)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINPROGRESS):
                raise Gone from error
            raise
        return number

    def _send(self, answer: bytes) -> None:
        try:
            fcntl.ioctl(self.fd, _SEND, answer)
        except OSError as error:
            raise Gone from error
