"""A booted lab: sessions in it, and requests that are answered within a time or not at all.

Nothing here can be left half done. A request that gets no answer ends its session, a machine that does not even do
that ends; an unexpected exception in the middle of an exchange (ctrl-C) ends the machine, because the rest of the
answer would be taken for the next one's.
"""

from __future__ import annotations

import select
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

from guestmem.lab import channel
from guestmem.lab.errors import LabFailed, SessionFailed
from guestmem.lab.qemu import Bootable, Hardware, Qemu

__all__ = ("ANSWER_LIMIT_S", "BOOT_LIMIT_S", "LabMachine")

BOOT_LIMIT_S = 60.0
ANSWER_LIMIT_S = 60.0
_END_LIMIT_S = 10.0  # for a SIGKILL in the guest to be answered
_LONGEST_POLL_S = 3600.0  # poll takes milliseconds in an int
_CHUNK = 1 << 16
_CONSOLE_KEPT = 1 << 14
_CONSOLE_READS = 8


class LabMachine:
    """A running lab, until ``close`` or the end of the with block. Requests of several threads take turns."""

    def __init__(self, qemu: Qemu) -> None:
        self._qemu = qemu
        qemu.port.setblocking(False)
        qemu.console.setblocking(False)
        self._frames = channel.Frames()
        self._waiting: defaultdict[int, deque[channel.Reply]] = defaultdict(deque)
        self._console = b""
        self._turn = threading.RLock()
        self._sessions = channel.MACHINE
        self._why_ended = ""
        self.release = ""

    @classmethod
    def boot(cls, kernel: Bootable, image: int, hardware: Hardware, limit_s: float = BOOT_LIMIT_S) -> LabMachine:
        """Start a machine and wait until it says hello; LabFailed if it does not within limit_s seconds."""
        return cls.on(Qemu.start(kernel, hardware, image), limit_s)

    @classmethod
    def on(cls, qemu: Qemu, limit_s: float) -> LabMachine:
        """The machine that a QEMU runs, once it says hello; LabFailed, and QEMU is ended, if it does not."""
        machine = cls(qemu)
        try:
            with machine._whole():
                hello = machine._await(channel.MACHINE, limit_s)
                if hello is None:
                    raise machine._failed(f"the lab did not come up within {limit_s:g} s")
                if not isinstance(hello, channel.Hello):
                    raise channel.ProtocolError(f"it began with {type(hello).__name__}")
            machine.release = hello.release
        except BaseException:
            machine.close()
            raise
        return machine

    def __enter__(self) -> LabMachine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The number of the QEMU process on this host."""
        return self._qemu.pid

    @property
    def is_open(self) -> bool:
        """Whether it has not ended, as far as we know."""
        return not self._why_ended

    def console(self) -> str:
        """The end of what the machine's kernel printed so far."""
        with self._turn:
            if self.is_open:
                self._read_console()
            return self._console.decode(errors="replace").replace("\r\n", "\n").strip()

    def close(self) -> None:
        """End the machine and every session; when this returns, no process is left. A second time: nothing."""
        self._why_ended = self._why_ended or "it was closed"
        self._qemu.close()

    # -- sessions ----------------------------------------------------------------------------------------------------

    def start(self, request: channel.Open | channel.Command, limit_s: float = ANSWER_LIMIT_S) -> int:
        """Start a process in the guest; the number of its session."""
        with self._turn:
            self._sessions += 1
            session = self._sessions
            self.ask(session, request, limit_s)
            return session

    def ask(self, session: int, request: channel.Request, limit_s: float = ANSWER_LIMIT_S) -> channel.Reply:
        """Send a request and wait for its reply.

        SessionFailed if there is none within limit_s seconds, or the session ended instead; it is gone then. LabFailed
        if the machine is gone. ValueError for a request that cannot be sent; nothing was. Any other exception in
        between closes the machine.
        """
        data = channel.frame(session, channel.encode(request))
        with self._turn, self._whole():
            self._send(data, limit_s)
            reply = self._await(session, limit_s)
            if reply is None:
                self._end_hung(session, f"no answer to {type(request).__name__} within {limit_s:g} s")
            if isinstance(reply, channel.Ended):
                raise SessionFailed(f"the process in the lab {_how_ended(reply.code())}", self.console())
            return reply

    def send(self, session: int, request: channel.Request) -> None:
        """Send a request; its reply comes by ``next``."""
        data = channel.frame(session, channel.encode(request))
        with self._turn, self._whole():
            self._send(data, ANSWER_LIMIT_S)

    def next(self, session: int, limit_s: float, also: int = -1) -> channel.Reply | None:
        """The next reply of a session; None if there is none within limit_s seconds or descriptor also is readable."""
        with self._turn, self._whole():
            return self._await(session, limit_s, also)

    def end(self, session: int) -> None:
        """Kill a session's process, if it lives; LabFailed if the machine does not do it."""
        with self._turn, self._whole():
            self._send(channel.frame(session, channel.encode(channel.End())), _END_LIMIT_S)
            deadline = time.monotonic() + _END_LIMIT_S
            while not isinstance(reply := self._await(session, deadline - time.monotonic()), channel.Ended):
                if reply is None:
                    raise self._failed(f"no process could be ended in it within {_END_LIMIT_S:g} s")
            del self._waiting[session]

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """An exchange that is not cut in two: what is not an answer about the lab ends it."""
        try:
            yield
        except channel.ProtocolError as wrong:
            if self.is_open:
                self.distrust(wrong)
            raise
        except (LabFailed, SessionFailed):
            raise
        except BaseException:
            self.close()
            raise

    def _end_hung(self, session: int, reason: str) -> NoReturn:
        try:
            self.end(session)
        except LabFailed as failed:
            raise LabFailed(f"{reason}, and {failed.reason}", failed.console) from None
        raise SessionFailed(f"{reason}; its process in the lab was killed", self.console())

    def distrust(self, wrong: channel.ProtocolError) -> NoReturn:
        """End a machine that does not speak as the lab does, and say so with its console."""
        self._failed(f"the lab's answer cannot be used: {wrong.reason}")
        raise channel.ProtocolError(self._why_ended, self.console()) from wrong

    # -- bytes -------------------------------------------------------------------------------------------------------

    def _send(self, data: bytes, limit_s: float) -> None:
        left = memoryview(data)
        deadline = time.monotonic() + limit_s
        while left:
            ready = self._wait(deadline, select.POLLIN | select.POLLOUT)
            if not ready:
                raise self._failed(f"it took no request for {limit_s:g} s")
            if ready & select.POLLOUT:
                try:
                    left = left[self._qemu.port.send(left) :]
                except (BrokenPipeError, ConnectionResetError):
                    raise self._gone() from None

    def _await(self, session: int, limit_s: float, also: int = -1) -> channel.Reply | None:
        deadline = time.monotonic() + limit_s
        while not self._waiting[session]:
            if not self._wait(deadline, select.POLLIN, also):
                return None
        return self._waiting[session].popleft()

    def _wait(self, deadline: float, events: int, also: int = -1) -> int:
        """Take in what arrives until the port is ready for one of events: which; 0 at the deadline or for also."""
        if not self.is_open:
            raise LabFailed(f"the lab is closed: {self._why_ended}")
        poll = select.poll()
        poll.register(self._qemu.port, events)
        poll.register(self._qemu.console, select.POLLIN)
        poll.register(self._qemu.pidfd, select.POLLIN)
        if also >= 0:
            poll.register(also, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = dict(poll.poll(min(left, _LONGEST_POLL_S) * 1000))
            if self._qemu.console.fileno() in ready and not self._read_console():
                poll.unregister(self._qemu.console)
            event = ready.get(self._qemu.port.fileno(), 0)
            if event & (select.POLLIN | select.POLLHUP):
                self._read_port()
            if event & events:
                return event & events
            if self._qemu.pidfd in ready:
                raise self._gone()
            if also in ready:
                return 0
        return 0

    def _read_port(self) -> None:
        try:
            data = self._qemu.port.recv(_CHUNK)
        except ConnectionResetError:
            data = b""
        if not data:
            raise self._gone()
        for session, body in self._frames.feed(data):
            if session > self._sessions:
                raise channel.ProtocolError(f"a message of session {session}, which was never opened")
            self._waiting[session].append(channel.decode_reply(body))

    def _read_console(self) -> bool:
        """Take in what the console says now, but no endless flood of it; False once it is closed."""
        try:
            for _ in range(_CONSOLE_READS):
                data = self._qemu.console.recv(_CHUNK)
                if not data:
                    return False
                self._console = (self._console + data)[-_CONSOLE_KEPT:]
            return True
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False

    # -- ends --------------------------------------------------------------------------------------------------------

    def _gone(self) -> LabFailed:
        code = self._qemu.ended(_END_LIMIT_S)
        if code is None:
            return self._failed("QEMU hung up")
        how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
        complaints = self._qemu.complaints()
        return self._failed(f"QEMU {how}" + (f": {complaints}" if complaints else ""))

    def _failed(self, reason: str) -> LabFailed:
        """Close the machine; what to raise."""
        self._read_console()
        self._why_ended = reason
        self.close()
        return LabFailed(reason, self.console())


def _how_ended(code: int) -> str:
    return f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
