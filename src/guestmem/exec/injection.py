"""Make a thread of the program that waits for an answer do a few system calls of ours, while all others stand still.

ptrace is held for these milliseconds only. The thread leaves its call, as for a signal, does what it is told, and asks
again afterwards. Signals that arrive meanwhile stay pending.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from guestmem.exec import system
from guestmem.exec.listener import ProgramCall
from guestmem.exec.system import Registers

__all__ = ("Stopped",)

_GETREGS, _SETREGS, _CONT, _DETACH, _SYSCALL = 12, 13, 7, 17, 24  # linux/ptrace.h, asm/ptrace-abi.h
_SEIZE, _INTERRUPT, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
_TRACE_SYSTEM_CALLS: Final = 1  # PTRACE_O_TRACESYSGOOD
_EVENT_STOP: Final = 128
_WALL: Final = 0x40000000
_SYSTEM_CALL_STOP: Final = signal.SIGTRAP | 0x80
_INSTRUCTION: Final = 2  # bytes of SYSCALL
_NO_CALL: Final = (1 << 64) - 1
_RESTARTS: Final = frozenset((1 << 64) - code for code in (512, 513, 514, 516))  # -ERESTARTSYS and its kin
_ALL_SIGNALS: Final = (1 << 64) - 1
_ARGUMENTS: Final = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


class Stopped:
    """The program of a waiting call, standing still. Use as a context; ProcessLookupError if the thread dies.

    Made and used in one thread: the kernel knows the tracer by its thread.
    """

    def __init__(self, call: ProgramCall) -> None:
        self._tid = call.tid
        self._number = call.number
        self._instruction = call.after - _INSTRUCTION
        self._others: set[int] = set()
        self._registers = Registers()
        self._mask = system.signal_mask(0)

    def __enter__(self) -> Stopped:
        try:
            self._stop(self._tid)
            found = True
            while found:  # threads that were made meanwhile
                found = False
                for task in list(Path(f"/proc/{self._tid}/task").iterdir()):
                    tid = int(task.name)
                    if tid != self._tid and tid not in self._others:
                        with contextlib.suppress(ProcessLookupError):
                            self._stop(tid)
                            self._others.add(tid)
                            found = True
            system.ptrace(_GETREGS, self._tid, 0, self._registers)
            system.ptrace(_GETSIGMASK, self._tid, 8, self._mask)
            system.ptrace(_SETSIGMASK, self._tid, 8, system.signal_mask(_ALL_SIGNALS))
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(self, *unused: object) -> None:
        """The thread's registers are its own again, and all go on; it repeats the call it was in."""
        registers = self._registers
        if registers.orig_rax == self._number and registers.rax in _RESTARTS:
            registers.rip, registers.rax, registers.orig_rax = self._instruction, self._number, _NO_CALL
        with contextlib.suppress(ProcessLookupError):
            system.ptrace(_SETREGS, self._tid, 0, registers)
            system.ptrace(_SETSIGMASK, self._tid, 8, self._mask)
        self._let_go()

    def call(self, number: int, *arguments: int) -> int:
        """The thread makes a system call; its result, a negative errno for a failure."""
        registers = Registers.from_buffer_copy(self._registers)
        for name, value in zip(_ARGUMENTS, arguments, strict=False):
            setattr(registers, name, value % (1 << 64))
        registers.rax, registers.orig_rax, registers.rip = number, _NO_CALL, self._instruction
        system.ptrace(_SETREGS, self._tid, 0, registers)
        stops = 0
        while stops < 2:  # at its entry, and at its end
            system.ptrace(_SYSCALL, self._tid)
            stops += self._wait(self._tid) & 0xFF == _SYSTEM_CALL_STOP
        system.ptrace(_GETREGS, self._tid, 0, registers)
        result = int(registers.rax)
        return result - (1 << 64) if result >> 63 else result

    def _stop(self, tid: int) -> None:
        system.ptrace(_SEIZE, tid, 0, _TRACE_SYSTEM_CALLS)
        system.ptrace(_INTERRUPT, tid)
        while True:
            stop = self._wait(tid)
            if stop >> 8 == _EVENT_STOP:
                return
            system.ptrace(_CONT, tid, 0, stop & 0xFF)  # a signal was about to be delivered: it is, and then we stop

    @staticmethod
    def _wait(tid: int) -> int:
        """The next stop: its signal, and its event above that."""
        _, status = os.waitpid(tid, _WALL)
        if not os.WIFSTOPPED(status):
            raise ProcessLookupError(f"thread {tid} ended")
        return status >> 8

    def _let_go(self) -> None:
        for tid in (self._tid, *self._others):
            with contextlib.suppress(OSError):
                system.ptrace(_DETACH, tid)
