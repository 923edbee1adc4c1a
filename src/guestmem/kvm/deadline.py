"""Bounds on how long a call to KVM may take.

KVM_RUN ends with EINTR when a signal is pending that the vCPU's signal mask (KVM_SET_SIGNAL_MASK) does not block. The
thread itself blocks that signal all the time, so no handler ever runs: the timer makes it pending, KVM_RUN returns, and
the signal is taken off the queue again. Works in any thread, and touches no handler of the program.

KVM_PRE_FAULT_MEMORY knows no such mask: it ends when any signal is to be handled, so for its time the signal has a
handler, which does nothing.
"""

from __future__ import annotations

import ctypes
import signal
import struct
import threading
from types import TracebackType
from typing import Final

from guestmem.kvm import libc, sigaction

__all__ = ("Deadline", "Interrupt", "signal_mask")

SIGNAL: Final = signal.SIGRTMAX
_CLOCK_MONOTONIC = 1
_SIGEV_THREAD_ID = 4
_SIGEVENT = struct.Struct("=Qiii44x")  # value, signo, notify, thread id
_ITIMERSPEC = struct.Struct("=qqqq")  # interval, value: seconds and nanoseconds each


def signal_mask() -> bytearray:
    """struct kvm_signal_mask: during KVM_RUN everything this thread blocks is blocked, except the deadline's signal."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    bits = sum(1 << number - 1 for number in blocked if number != SIGNAL)
    return bytearray(struct.pack("=IQ", 8, bits))


class Deadline:
    """While entered, ``arm`` gives KVM_RUN that many seconds; ``passed`` says whether they ran out."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def __enter__(self) -> Deadline:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
        event = bytearray(_SIGEVENT.pack(0, SIGNAL, _SIGEV_THREAD_ID, threading.get_native_id()))
        self._timer = ctypes.c_void_p()
        place = ctypes.addressof(self._timer)
        libc.call("timer_create", "timer_create", _CLOCK_MONOTONIC, libc.address_of(event), place)
        return self

    def arm(self) -> None:
        """Start counting again."""
        self._set(self.seconds)

    def passed(self) -> bool:
        """Whether the signal is pending; takes it off the queue."""
        return signal.sigtimedwait({SIGNAL}, 0) is not None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        libc.call("timer_delete", "timer_delete", self._timer)
        while self.passed():
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _set(self, seconds: int, again: int = 0) -> None:
        setting = bytearray(_ITIMERSPEC.pack(again, 0, seconds, 0))
        libc.call("timer_settime", "timer_settime", self._timer, 0, libc.address_of(setting), None)


class Interrupt(Deadline):
    """While entered, a system call of this thread that heeds signals ends with EINTR after that many seconds.

    The signal comes again and again: the first could arrive just before the call.
    """

    def __enter__(self) -> Interrupt:
        super().__enter__()
        self._old = sigaction.space()
        sigaction.exchange(SIGNAL, sigaction.action(libc.no_effect(), 0), self._old)
        self._set(self.seconds, again=self.seconds)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {SIGNAL})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {SIGNAL})
        sigaction.exchange(SIGNAL, self._old)
        super().__exit__(kind, error, trace)
