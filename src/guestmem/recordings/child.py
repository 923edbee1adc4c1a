"""A forked child that does the dangerous work: what crashes, hangs or leaks there ends with it.

The child has /dev/null as its standard files and no other descriptor of its parent, so that an operation on a stray
number hits nothing. It is the first to go when memory runs out, it never outlives its time limit, and it yields bytes
one message at a time, so that the parent knows how far it came.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Final

__all__ = ("ChildEnded", "messages")

_HEAD: Final = 5  # bytes before a message: its kind and its length
_MESSAGE, _ERROR = b"+", b"!"
_OUTPUT: Final = 1000  # the child's end of the pipe: no number that a sequence is likely to name
_GRACE_S: Final = 5
_STOPS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # what a terminal or a supervisor sends to all of us


class ChildEnded(Exception):
    """The child crashed, was killed because it did not answer in time, or raised what it should not have."""


def messages(work: Callable[[], Iterable[bytes]], limit_s: float) -> Generator[bytes, None, None]:
    """Yield what ``work`` yields in a child, each message at most limit_s seconds after the one before; ChildEnded.

    The child is killed and reaped when the generator ends, whatever the reason.
    """
    read_end, write_end = os.pipe()
    pid, mask = _fork_undisturbed()
    if pid == 0:
        _child(work, write_end, limit_s, mask)
    os.close(write_end)
    reaped: list[int] = []

    def reap() -> int:
        if not reaped:
            reaped.append(os.waitpid(pid, 0)[1])
        return reaped[0]

    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        yield from _received(read_end, limit_s, reap)
    finally:
        os.close(read_end)
        if not reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        reap()


def _fork_undisturbed() -> tuple[int, set[int]]:
    """os.fork with _STOPS blocked in both, and the mask before: in what Python runs after a fork none must arrive."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
        return os.fork(), mask
    except BaseException:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise


def _received(read_end: int, limit_s: float, reap: Callable[[], int]) -> Iterator[bytes]:
    while True:
        head = _read(read_end, _HEAD, limit_s)
        if not head:
            status = reap()
            if os.WIFSIGNALED(status):
                raise ChildEnded(f"it was ended by {signal.Signals(os.WTERMSIG(status)).name}")
            if status:
                raise ChildEnded(f"it ended with status {os.waitstatus_to_exitcode(status)}")
            return
        data = _read(read_end, int.from_bytes(head[1:], "little"), limit_s)
        if head[:1] == _ERROR:
            raise ChildEnded(data.decode())
        yield data


def _read(fd: int, size: int, limit_s: float) -> bytes:
    """That many bytes; fewer at the end of the pipe; ChildEnded if they do not come in time."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    while len(data) < size:
        if not poll.poll(limit_s * 1000):
            raise ChildEnded(f"it did not answer within {limit_s:g} s")
        part = os.read(fd, size - len(data))
        if not part:
            break
        data += part
    return data


def _child(work: Callable[[], Iterable[bytes]], write_end: int, limit_s: float, mask: set[int]) -> None:
    """Never returns."""
    try:
        _detach(write_end, mask)
        for message in work():
            signal.alarm(int(limit_s) + _GRACE_S)  # should the parent be gone
            _send(_MESSAGE, message)
    except BaseException as error:
        lines = traceback.format_exception_only(error)
        with contextlib.suppress(BaseException):
            _send(_ERROR, "".join(lines).strip().encode())
    finally:
        os._exit(0)


def _detach(write_end: int, mask: set[int]) -> None:
    for number in _STOPS:  # they are the parent's to answer, who ends its children
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(write_end, _OUTPUT)
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.closerange(3, _OUTPUT)
    os.closerange(_OUTPUT + 1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _send(kind: bytes, message: bytes) -> None:
    view = memoryview(kind + len(message).to_bytes(_HEAD - 1, "little") + message)
    while view:
        view = view[os.write(_OUTPUT, view) :]
