"""The guest's side of the channel: one process for each session, and the messenger between them and the port.

Runs as process 1. It opens nothing of KVM itself, so every session forked from it
is a fresh process. It looks into a frame only to see whether a session starts or must end.

Invariant: when the host is gone from the port, ``run`` returns and the machine ends, whatever the sessions do.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from guestmem.backend import Backend
from guestmem.lab import channel, guest, serve
from guestmem.version import __version__

__all__ = ("Agent", "main")

_RUN_LIMIT_S = 30  # an emulated processor on a busy host takes its time

_CHUNK = 1 << 16
_LINK_FD = 200  # out of the way: a session's own descriptors count from 3, as in any fresh process


@dataclass(slots=True)
class _Session:
    number: int
    pid: int
    pidfd: int
    link: socket.socket
    frames: channel.Frames = field(default_factory=channel.Frames)


class Agent:
    """Sessions by number. ``port`` is a descriptor with a host behind it; backend makes a session's backend."""

    def __init__(self, port: int, backend: Callable[[], Backend], enter_host: Callable[[str], None]) -> None:
        self._port = port
        self._backend = backend
        self._enter_host = enter_host
        self._frames = channel.Frames()
        self._sessions: dict[int, _Session] = {}
        self._poll = select.poll()
        self._poll.register(port, select.POLLIN)

    def run(self) -> None:
        """Deliver until the host is gone or asks for the end; kill what is left of the sessions."""
        self._reply(channel.MACHINE, channel.Hello(__version__, os.uname().release))
        while all(self._handle(fd, event) for fd, event in self._poll.poll()):  # all events, then the verdict
            pass
        for session in self._sessions.values():
            _kill(session)

    def _handle(self, fd: int, event: int) -> bool:
        """Act on one event; False if it is the end."""
        if fd == self._port:
            return bool(event & select.POLLIN) and self._from_host()
        for session in self._sessions.values():
            if fd == session.link.fileno():
                self._from_session(session)
                break
            if fd == session.pidfd:
                self._end(session)
                break
        return True

    # -- from the host -----------------------------------------------------------------------------------------------

    def _from_host(self) -> bool:
        data = os.read(self._port, _CHUNK)
        return bool(data) and all(self._accept(number, body) for number, body in self._frames.feed(data))

    def _accept(self, number: int, body: bytes) -> bool:
        session = self._sessions.get(number)
        request = channel.decode_request(body) if session is None or len(body) <= _END_LENGTH else None
        match request:
            case channel.PowerOff():
                return False
            case channel.End() if session:
                _kill(session)  # a hung session would not read it; its end is what answers
            case channel.Open(module) if not session:
                work = _work_of(module)  # before the fork: imported once for all sessions
                self._fork(number, lambda link: serve.serve(link, number, self._backend(), work))
            case channel.Command() if not session:
                self._fork(number, lambda link: self._command(link, number, request))
            case _ if session:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # dying: its end is what answers
                    session.link.sendall(channel.frame(number, body))
            case _:
                self._reply(number, channel.Ended(0))  # it ended before the host knew
        return True

    def _command(self, link: socket.socket, number: int, request: channel.Command) -> None:
        # Here and not at the top: few starts need it, and every start would pay for it.
        from guestmem.lab import command

        self._enter_host(request.directory)
        os._exit(command.run(link, number, request))

    def _fork(self, number: int, body: Callable[[socket.socket], None]) -> None:
        ours, theirs = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            self._become_session(theirs, body)
        theirs.close()
        session = _Session(number, pid, os.pidfd_open(pid), ours)
        self._sessions[number] = session
        self._poll.register(session.link, select.POLLIN)
        self._poll.register(session.pidfd, select.POLLIN)
        self._reply(number, channel.Opened(pid))

    def _become_session(self, link: socket.socket, body: Callable[[socket.socket], None]) -> NoReturn:
        """In the child: keep the link and the console, let go of everything else, never come back."""
        status = 1
        try:
            os.setsid()
            far = socket.socket(fileno=os.dup2(link.detach(), _LINK_FD, inheritable=False))
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, 0)
            os.closerange(3, _LINK_FD)
            body(far)
            status = 0
        except BaseException:  # a session's failure shows on the console and in its status
            traceback.print_exc()
        finally:
            os._exit(status)

    # -- from the sessions -------------------------------------------------------------------------------------------

    def _from_session(self, session: _Session) -> None:
        """Pass on what is complete: pieces of two sessions must not mix on the port."""
        data = b""
        with contextlib.suppress(ConnectionResetError):
            data = session.link.recv(_CHUNK)
        if not data:
            self._poll.unregister(session.link)  # its pidfd reports its end
        for _, body in session.frames.feed(data):
            self._send(channel.frame(session.number, body))

    def _end(self, session: _Session) -> None:
        session.link.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while data := session.link.recv(_CHUNK):
                for _, body in session.frames.feed(data):
                    self._send(channel.frame(session.number, body))
        with contextlib.suppress(KeyError):
            self._poll.unregister(session.link)
        self._poll.unregister(session.pidfd)
        session.link.close()
        os.close(session.pidfd)
        del self._sessions[session.number]
        _, status = os.waitpid(session.pid, 0)
        self._reply(session.number, channel.Ended(status))
        self._reap()

    def _reap(self) -> None:
        """Collect what ended sessions left behind: process 1 inherits it."""
        living = {session.pid for session in self._sessions.values()}
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in living:
                    return
                os.waitpid(ended.si_pid, 0)

    def _reply(self, session: int, reply: channel.Reply) -> None:
        self._send(channel.frame(session, channel.encode(reply)))

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._port, view) :]


_END_LENGTH = len(channel.encode(channel.End()))  # a longer body to a living session is none of our business


def _work_of(module: str) -> serve.Work | None:
    return importlib.import_module(module).work if module else None


def _kill(session: _Session) -> None:
    # With what it started, unless that left the process group; alone if it did not come to make a group yet.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(session.pid, signal.SIGKILL)


def main() -> NoReturn:
    """Process 1 of the lab's machine."""
    # Not at the top: the messenger itself is tested with any backend. Before the first fork: sessions inherit it.
    from guestmem.kvm import KvmBackend

    class InLab(KvmBackend):
        name = "lab"  # what the caller knows it as

        def __init__(self) -> None:
            super().__init__(run_limit_s=_RUN_LIMIT_S)

    try:
        guest.mount_kernel_filesystems()
        guest.load_modules()
        Agent(guest.open_port(), InLab, guest.enter_host).run()
    except BaseException:
        traceback.print_exc()
    finally:
        guest.power_off()
    raise AssertionError("bug in guestmem: the machine did not end")
