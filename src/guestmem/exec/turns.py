"""Whose turn it is: one lock over the model and every vCPU.

A vCPU holds it while it executes a slice of guest code. Who wants it asks the engine that runs to stop, and asks again
until the lock is free: a request that comes before the slice has begun is lost. One at a time makes LOCK instructions,
mappings that go and slots that change consistent between vCPUs.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Protocol

__all__ = ("Stoppable", "ProgramTurns")

_ASK_AGAIN_S = 0.0003
_SLICE_S = 0.004
_LET_OTHERS_S = 0.00002


class Stoppable(Protocol):
    """What runs guest code."""

    def stop(self) -> None:
        """End the slice soon; from any thread."""


class ProgramTurns:
    """The lock. ``running`` is set by its holder while guest code runs."""

    def __init__(self) -> None:
        self.running: Stoppable | None = None
        self._lock = threading.Lock()
        self._waiting = 0
        self._counting = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, type: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._lock.release()

    def acquire(self) -> None:
        """Wait for the turn; whoever runs guest code is stopped."""
        if self._lock.acquire(blocking=False):
            return
        with self._counting:
            self._waiting += 1
        while not self._lock.acquire(timeout=_ASK_AGAIN_S):
            running = self.running
            if running is not None:
                running.stop()
        with self._counting:
            self._waiting -= 1

    def give_way(self) -> None:
        """Between two slices: let whoever waits have a turn."""
        if self._waiting:
            self._lock.release()
            time.sleep(_LET_OTHERS_S)
            self.acquire()

    def tick(self) -> None:
        """End each slice after a few milliseconds, until ``end``: a thread of its own does this."""
        while not self._ended.wait(_SLICE_S):
            running = self.running
            if running is not None:
                running.stop()

    def end(self) -> None:
        """No more ticks."""
        self._ended.set()
