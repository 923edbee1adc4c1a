"""One session's process in the guest that runs a program for the host: its input, its output, its end.

The process is thrown away afterwards, so it may change its own root and session before it starts the program. It ends
as the program ended; a program killed by a signal gives 128 + signal, as in a shell.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import socket
import subprocess
import termios
from collections.abc import Callable
from dataclasses import dataclass, field

from guestmem.lab import channel

__all__ = ("run",)

_CHUNK = 1 << 16
_NOT_FOUND = 127  # what a shell answers for a program it cannot run


def run(link: socket.socket, session: int, request: channel.Command) -> int:
    """Run the program in this process's root directory and carry its bytes over link; its exit code."""
    try:
        os.chdir(request.directory)
        program = _with_terminal(request) if request.rows and request.columns else _with_pipes(request)
    except OSError as wrong:
        _send(link, session, channel.Output(2, f"lab: {wrong}\n".encode()))
        return _NOT_FOUND
    return _carry(link, session, program)


@dataclass(slots=True)
class _Program:
    wait: Callable[[], int]  # for its end: the exit code, or minus the signal
    stdin: int  # -1 once closed
    outputs: dict[int, int] = field(default_factory=dict)  # descriptor -> stream


def _with_pipes(request: channel.Command) -> _Program:
    pipe = subprocess.PIPE
    process = subprocess.Popen(request.argv, stdin=pipe, stdout=pipe, stderr=pipe, env=request.environment, bufsize=0)
    assert process.stdin and process.stdout and process.stderr, "bug in guestmem: asked for three pipes"
    stdin, stdout, stderr = (os.dup(stream.fileno()) for stream in (process.stdin, process.stdout, process.stderr))
    for stream in (process.stdin, process.stdout, process.stderr):
        stream.close()
    return _Program(process.wait, stdin, {stdout: 1, stderr: 2})


def _with_terminal(request: channel.Command) -> _Program:
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            termios.tcsetwinsize(0, (request.rows, request.columns))
            os.execvpe(request.argv[0], list(request.argv), request.environment)
        except OSError as wrong:
            os.write(2, f"lab: {wrong}: {request.argv[0]}\r\n".encode())
        finally:
            os._exit(_NOT_FOUND)
    return _Program(lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), terminal, {terminal: 1})


def _carry(link: socket.socket, session: int, program: _Program) -> int:
    frames = channel.Frames()
    poll = select.poll()
    for fd in (link.fileno(), *program.outputs):
        poll.register(fd, select.POLLIN)
    while program.outputs:
        for fd, _ in poll.poll():
            if fd == link.fileno():
                data = link.recv(_CHUNK)
                if not data:  # the messenger is gone, and this process group with it
                    os.killpg(0, signal.SIGKILL)
                for _, body in frames.feed(data):
                    _feed(program, channel.decode_request(body))
                    _send(link, session, channel.Accepted())
            elif data := _read(fd):
                _send(link, session, channel.Output(program.outputs[fd], data))
            else:
                poll.unregister(fd)
                del program.outputs[fd]
    code = program.wait()
    return code if code >= 0 else 128 - code


def _feed(program: _Program, request: channel.Request) -> None:
    """Give the program its input; a program that closed it is not an error, as with a broken pipe in a shell."""
    if not isinstance(request, channel.Input):
        raise channel.ProtocolError(f"{type(request).__name__} to a session that runs a command")
    if program.stdin < 0:
        return
    with contextlib.suppress(BrokenPipeError):
        view = memoryview(request.data)
        while view:
            view = view[os.write(program.stdin, view) :]
    if not request.data:
        if program.stdin in program.outputs:  # a terminal's end of input is a character
            os.write(program.stdin, b"\x04")
        else:
            os.close(program.stdin)
            program.stdin = -1


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _CHUNK)
    except OSError:  # a terminal whose last user is gone answers EIO
        return b""


def _send(link: socket.socket, session: int, message: channel.Reply) -> None:
    link.sendall(channel.frame(session, channel.encode(message)))
