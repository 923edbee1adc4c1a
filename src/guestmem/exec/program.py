"""Start a program under the filter, and how it ended."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Sequence
from typing import Final, NoReturn

from guestmem.errors import BackendUnavailable
from guestmem.exec import bpf, system

__all__ = ("Program", "exit_status", "start")

_NO_PROGRAM, _NO_PERMISSION = 127, 126  # what a shell answers
_FORWARDED: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_OF_THE_TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)  # the program gets them too, and decides


class Program:
    """The process that was started, and the descriptor by which its calls are answered."""

    def __init__(self, pid: int, listener: int) -> None:
        self.pid = pid
        self.listener = listener
        self.ended = os.pidfd_open(pid)  # readable once the process has ended
        self._status: int | None = None

    def forward_signals(self) -> None:
        """Signals to the supervisor are the program's from now on."""
        for number in _FORWARDED:
            signal.signal(number, lambda received, frame: self._send(received))
        for number in _OF_THE_TERMINAL:
            signal.signal(number, signal.SIG_IGN)

    def kill(self) -> None:
        """End the process at once."""
        self._send(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit code, 128 + the signal that killed it."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = exit_status(status)
            os.close(self.ended)
        return self._status

    def _send(self, number: int) -> None:
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


def exit_status(status: int) -> int:
    """A wait status as a shell has it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def start(command: Sequence[str]) -> Program:
    """Run a command under the filter; it waits at its first call that is asked about.

    BackendUnavailable where this machine has no user notification. A command that does not exist ends with 127.
    """
    filter = bpf.program()
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        _become(command, filter, theirs, parent)
    theirs.close()
    with ours:
        message, descriptors, _, _ = socket.recv_fds(ours, 64, 1)
    if not descriptors:
        os.waitpid(pid, 0)
        raise BackendUnavailable(
            f"guestmem exec needs seccomp user notification (Linux 5.14), which is refused here: {message.decode()}"
        )
    return Program(pid, descriptors[0])


def _become(command: Sequence[str], filter: bytes, link: socket.socket, parent: int) -> NoReturn:
    """In the child: filter, then the program."""
    try:
        system.die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(_NO_PROGRAM)
        try:
            listener = system.install_filter(filter)
        except OSError as refused:
            link.send((refused.strerror or "refused").encode())
            os._exit(_NO_PROGRAM)
        socket.send_fds(link, [b"listener"], [listener])
        os.close(listener)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
        try:
            os.execvp(command[0], list(command))
        except OSError as error:
            os.write(2, f"guestmem: {command[0]}: {error.strerror}\n".encode())
            os._exit(_NO_PROGRAM if error.errno == errno.ENOENT else _NO_PERMISSION)
    finally:
        os._exit(_NO_PROGRAM)
