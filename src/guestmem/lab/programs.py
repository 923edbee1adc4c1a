"""Programs in the lab: one command, or a shell, on the lab's kernel and the host's files (read-only).

The program sees the host's file system as it is, with the lab's own /dev, /proc, /sys and a /tmp in memory that is
empty but for what holds the current directory, and runs as the lab's root. What it writes elsewhere fails; what it
leaves in /tmp is gone with the machine."""

from __future__ import annotations

import contextlib
import os
import signal
import termios
import time
import tty
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from guestmem.errors import InputError
from guestmem.lab import channel
from guestmem.lab.errors import SessionFailed
from guestmem.lab.kernel import DEFAULT
from guestmem.lab.machine import LabMachine
from guestmem.lab.opening import boot
from guestmem.lab.qemu import Hardware

__all__ = ("ESCAPE", "exec_", "shell")

ESCAPE = b"\x1d"  # ctrl-], as in telnet: the way out of a terminal in which nothing else answers
_CHUNK = 1 << 15
_NO_END = float("inf")


def exec_(
    argv: Sequence[str],
    *,
    kernel: str = DEFAULT,
    hardware: Hardware | None = None,
    environment: Mapping[str, str] | None = None,
    limit_s: float = 3600.0,
    stdin: int = 0,
    stdout: int = 1,
    stderr: int = 2,
) -> int:
    """Run a command in a lab booted for it; its exit code, 128 + signal if one killed it, 127 if there is none.

    environment is os.environ unless given; stdin, stdout and stderr are descriptors of this process. SessionFailed
    after limit_s seconds.
    """
    with _machine(kernel, hardware) as machine:
        return _run(machine, _command(argv, environment), limit_s, stdin, {1: stdout, 2: stderr})


def shell(*, kernel: str = DEFAULT, hardware: Hardware | None = None, stdin: int = 0, stdout: int = 1) -> int:
    """An interactive shell ($SHELL) in a lab booted for it; its exit code. ctrl-] ends it.

    stdin and stdout are descriptors of a terminal, ValueError if stdin is none; the shell's has the size it has now.
    """
    if not os.isatty(stdin):
        raise InputError("a shell needs a terminal; to run a script use: guestmem lab exec -- sh SCRIPT")
    size = os.get_terminal_size(stdin)
    command = _command([os.environ.get("SHELL", "/bin/sh")], None, size.lines, size.columns)
    with _machine(kernel, hardware) as machine, _raw(stdin):
        return _run(machine, command, _NO_END, stdin, {1: stdout}, escape=True)


def _machine(kernel: str, hardware: Hardware | None) -> LabMachine:
    return boot(kernel, replace(hardware or Hardware(), host_files=True))


def _command(
    argv: Sequence[str], environment: Mapping[str, str] | None, rows: int = 0, columns: int = 0
) -> channel.Command:
    variables = dict(os.environ if environment is None else environment)
    return channel.Command(tuple(argv), variables, str(Path.cwd()), rows, columns)


def _run(
    machine: LabMachine,
    command: channel.Command,
    limit_s: float,
    stdin: int,
    outputs: Mapping[int, int],
    *,
    escape: bool = False,
) -> int:
    session = machine.start(command)
    deadline = time.monotonic() + limit_s
    listening = True  # to stdin: not while the guest still writes what it got, and not after its end
    ended = False
    while True:
        reply = machine.next(session, deadline - time.monotonic(), stdin if listening and not ended else -1)
        match reply:
            case channel.Output(stream, data) if stream in outputs:
                _write(outputs[stream], data)
            case channel.Accepted():
                listening = True
            case channel.Ended():
                code = reply.code()
                return code if code >= 0 else 128 - code
            case None if time.monotonic() >= deadline:
                machine.end(session)
                raise SessionFailed(f"{command.argv[0]} did not end within {limit_s:g} s and was killed")
            case None:
                data = os.read(stdin, _CHUNK)
                if escape and ESCAPE in data:
                    return 128 + signal.SIGHUP
                machine.send(session, channel.Input(data))
                listening, ended = False, not data
            case _:
                raise channel.ProtocolError(f"a command was answered by {type(reply).__name__}")


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Every key to the guest, also ctrl-C; the terminal as it was afterwards."""
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
