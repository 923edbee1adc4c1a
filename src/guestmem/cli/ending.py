"""How the program ends when it is stopped, or when nobody reads what it says."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from threading import Timer, get_ident
from types import FrameType
from typing import Final
from weakref import ref

__all__ = ("BROKEN_PIPE", "stopped_by_signals", "whole_output")

BROKEN_PIPE: Final = 128 + signal.SIGPIPE  # as shells have it of a program that the signal ended
_AGAIN_S = 0.01


class _Stopped(SystemExit):
    """A signal; a class of its own because only those have weak references."""


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP raise SystemExit(128 + the signal): what cleans up after ctrl-C does so after them.

    While that exception lives, another one has no effect: a terminal that goes away says so twice. If it dies before
    the block ends, then a library has swallowed it (C code that clears errors), and it is raised again. What was
    ignored when the program started (nohup) stays ignored.
    """
    stopping: ref[_Stopped] | None = None
    running = True

    def stop(number: int, frame: FrameType | None) -> None:
        def lost(_: object) -> None:
            if running:  # and not here, where an exception would be ignored
                Timer(_AGAIN_S, signal.pthread_kill, (get_ident(), number)).start()

        nonlocal stopping
        if stopping is None or stopping() is None:
            stopped = _Stopped(128 + number)
            stopping = ref(stopped, lost)
            try:
                raise stopped
            finally:
                del stopped  # this frame is in its traceback: it would keep itself alive

    ours = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) == signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        running = False
        for number in ours:
            signal.signal(number, signal.SIG_DFL if stopping is None else signal.SIG_IGN)


@contextmanager
def whole_output() -> Iterator[None]:
    """All that the block prints is written when it ends: OSError, BrokenPipeError, and not when the interpreter ends.

    File names that are no UTF-8 print with question marks. That typer and rich make exit status 1 of a broken pipe is
    undone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        yield
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            raise ended.__context__ from None
        raise
    finally:
        _flush()


def _flush() -> None:
    if sys.stdout is None:  # the shell closed it: >&-
        return
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())  # for the interpreter, which tries again at its end
            os.close(null)
        raise
