"""A vCPU's thread: answers its KVM_RUN, and in their order the other calls on it that come meanwhile."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from guestmem.exec.listener import ProgramCall

__all__ = ("Worker",)


class Worker:
    """One thread; ``answer`` takes its turn itself."""

    def __init__(self, name: str, answer: Callable[[ProgramCall], None]) -> None:
        self._queue: queue.SimpleQueue[ProgramCall | None] = queue.SimpleQueue()
        self._answer = answer
        threading.Thread(target=self._work, name=name, daemon=True).start()

    def put(self, call: ProgramCall) -> None:
        """Answer this call, after those before it."""
        self._queue.put(call)

    def end(self) -> None:
        """No more calls come."""
        self._queue.put(None)

    def _work(self) -> None:
        while (call := self._queue.get()) is not None:
            self._answer(call)
