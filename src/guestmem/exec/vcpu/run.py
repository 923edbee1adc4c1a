"""KVM_RUN: guest code until it exits to user space, and the exits as struct kvm_run shows them (linux/kvm.h).

What an exit leaves to be done (the data of IN, a load from MMIO, a hypercall's result) is completed when KVM_RUN is
entered again. A guest's exceptions go through its own IDT.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from guestmem.exec.guestmemory import GuestMemory
from guestmem.exec.turns import ProgramTurns
from guestmem.exec.vcpu import state as registers
from guestmem.exec.vcpu.deliver import Frame, deliver
from guestmem.exec.vcpu.engine import Engine, Failed
from guestmem.exec.vcpu.state import CpuState
from guestmem.exec.vcpu.stops import (
    UD,
    WITH_ERROR_CODE,
    GuestException,
    Internal,
    Invalid,
    NoMemory,
    PortAccess,
    Shutdown,
    Stop,
)
from guestmem.model.vcpu import Vcpu
from guestmem.uapi import KVM_EXIT_MEMORY_FAULT, KVM_EXIT_MMIO, KVM_EXIT_UNKNOWN, KVM_MEMORY_EXIT_FLAG_PRIVATE

__all__ = ("RUN_SIZE", "AskAgain", "VirtualCpu")

RUN_SIZE: Final = 3 * 4096
_IO, _HYPERCALL, _HLT, _SHUTDOWN, _INTR, _INTERNAL = 2, 3, 5, 8, 10, 17
_IMMEDIATE_EXIT, _EXIT_REASON, _READY, _DATA, _PORT_DATA = 1, 8, 12, 32, 4096
_HYPERCALL_RESULT: Final = 88
_CALLS: Final = (b"\x0f\x01\xc1", b"\x0f\x01\xd9")  # VMCALL, VMMCALL
_MAP_GPA_RANGE: Final = 12
_NO_SUCH_CALL, _BAD_ARGUMENT = -1000, -errno.EINVAL
RAX, RBX, RCX, RDX, RSI = range(5)
_NAMES: Final = {
    KVM_EXIT_UNKNOWN: "unknown",
    _IO: "io",
    _HYPERCALL: "hypercall",
    _HLT: "hlt",
    KVM_EXIT_MMIO: "mmio",
    _SHUTDOWN: "shutdown",
    _INTERNAL: "internal error",
    KVM_EXIT_MEMORY_FAULT: "memory fault",
}


class AskAgain(Exception):
    """The program's memory at [start, end) must be made shared first; then the guest goes on where it was."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__(f"[{start:#x}, {end:#x})")
        self.start = start
        self.end = end


@dataclass(slots=True)
class _Load:
    """A load from MMIO that waits for its data."""

    address: int
    size: int


@dataclass(slots=True)
class _PortInput:
    size: int


class _HypercallResult:
    pass


class VirtualCpu:
    """One vCPU: its registers, its engine, its run page. Whoever calls holds the turn."""

    def __init__(self, vcpu: Vcpu, memory: GuestMemory, run: memoryview, turns: ProgramTurns) -> None:
        self.state = CpuState(vcpu.id)
        self.hypercall_exits = 0  # KVM_CAP_EXIT_HYPERCALL's mask, as the VM has it
        self._vcpu, self._memory, self._run, self._turns = vcpu, memory, run, turns
        self._engine: Engine | None = None
        self._pending: _Load | _PortInput | _HypercallResult | None = None
        self._saved = True  # the state is what the engine's registers are
        self._general_changed = self._system_changed = True

    # -- registers ---------------------------------------------------------------------------------------------------

    def get_general(self) -> bytes:
        """struct kvm_regs."""
        self._save()
        return registers.GENERAL.pack(*self.state.general)

    def set_general(self, data: bytes) -> None:
        """Take struct kvm_regs."""
        self._save()
        self.state.general = list(registers.GENERAL.unpack(data))
        self._general_changed = True

    def get_system(self) -> bytes:
        """struct kvm_sregs."""
        self._save()
        return bytes(self.state.sregs)

    def set_system(self, data: bytes) -> None:
        """Take struct kvm_sregs."""
        self._save()
        self.state.sregs[:] = data
        self._system_changed = True

    def _save(self) -> None:
        if not self._saved and self._engine is not None:
            self._engine.save()
        self._saved = True

    # -- KVM_RUN -----------------------------------------------------------------------------------------------------

    def run(self, is_waited_for: Callable[[], bool]) -> int:
        """0, or a negative errno; the run page says why. AskAgain where the program's memory is not at hand."""
        run = self._run
        if run[_IMMEDIATE_EXIT]:
            if self._engine is not None:
                self._complete(self._engine)
            return -errno.EINTR  # exit_reason stays what it was
        # What a signal leaves there: the program may be back before we know of it.
        struct.pack_into("<I", run, _EXIT_REASON, _INTR)
        try:
            if not self.state.is_long_mode:
                return self._without_long_mode()
            engine = self._loaded()
            self._complete(engine)
            return self._go(engine, is_waited_for)
        except Stop as stop:
            return self._end(stop)

    def _go(self, engine: Engine, is_waited_for: Callable[[], bool]) -> int:
        while True:
            if engine.stop_reason is None:
                self._turns.running = engine
                try:
                    engine.slice()
                finally:
                    self._turns.running = None
            stop, engine.stop_reason = engine.stop_reason, None
            if stop is not None:
                result = self._handle(engine, stop)
                if result is not None:
                    return result
            elif engine.halted:
                return self._exit(_HLT)
            self._turns.give_way()
            if not is_waited_for():
                struct.pack_into("<I", self._run, _EXIT_REASON, _INTR)
                return -errno.EINTR

    def _loaded(self) -> Engine:
        engine = self._engine
        if engine is None:
            engine = self._engine = Engine(self._memory, self._vcpu, self.state)
        if self._system_changed:
            engine.load_system()
        if self._general_changed:
            engine.load_general()
        self._general_changed = self._system_changed = self._saved = False
        engine.forget_changed_code()
        return engine

    def _without_long_mode(self) -> int:
        """Real mode is not served: a VM without memory at the reset vector ends as on KVM, any other by an error."""
        gpa = self.state.base(registers.CS) + self.state.general[registers.RIP]
        try:
            self._memory.page(self._vcpu, gpa, "x")
        except NoMemory as stop:
            if stop.kind != "mmio":
                raise
        raise Internal(Internal.EMULATION)

    # -- what stops a slice ------------------------------------------------------------------------------------------

    def _handle(self, engine: Engine, stop: Stop) -> int | None:
        """None to go on; else KVM_RUN's result."""
        if isinstance(stop, PortAccess):
            return self._port(stop)
        if isinstance(stop, NoMemory) and stop.kind == "mmio" and not stop.walking:
            return self._mmio(engine, stop)
        if isinstance(stop, Invalid):
            if self._instruction(engine) in _CALLS:
                return self._hypercall(engine)
            stop = GuestException(UD)
        if isinstance(stop, GuestException):
            self._deliver(engine, stop)
            return None
        if isinstance(stop, Failed):
            raise stop.bug
        raise stop

    @staticmethod
    def _instruction(engine: Engine) -> bytes:
        try:
            return engine.read(engine.rip, 3)
        except Stop:
            return b""

    def _deliver(self, engine: Engine, exception: GuestException) -> None:
        if exception.address is not None:
            engine.set_fault_address(exception.address)
        code = exception.code
        if code is None and exception.vector in WITH_ERROR_CODE:
            code = 0
        engine.save()
        state = self.state
        general = state.general
        frame = Frame(
            general[registers.RIP],
            general[registers.RSP],
            general[registers.RFLAGS],
            state.selector(registers.CS),
            state.selector(registers.SS),
            state.idt,
            state.base(registers.TR),
        )
        deliver(engine, frame, exception.vector, code)
        engine.write_general(registers.RIP, frame.rip)
        engine.write_general(registers.RSP, frame.rsp)
        engine.write_general(registers.RFLAGS, frame.rflags)

    def _port(self, stop: PortAccess) -> int:
        run = self._run
        struct.pack_into("<BBHIQ", run, _DATA, int(stop.out), stop.size, stop.port, 1, _PORT_DATA)
        if stop.out:
            run[_PORT_DATA : _PORT_DATA + stop.size] = stop.value.to_bytes(8, "little")[: stop.size]
        else:
            self._pending = _PortInput(stop.size)
        return self._exit(_IO)

    def _mmio(self, engine: Engine, stop: NoMemory) -> int | None:
        if stop.access == "x":
            raise Internal(Internal.EMULATION)
        accesses = engine.step_on_scratch(stop.address, None)
        if engine.stop_reason is not None or not accesses:
            return None  # the instruction met something else first
        access = accesses[0]
        gpa = (stop.gpa & ~0xFFF) | (access.address & 0xFFF)
        value = access.value % (1 << 64) if access.write else 0
        data = value.to_bytes(8, "little")[: access.size].ljust(8, b"\0")
        struct.pack_into("<Q8sIB", self._run, _DATA, gpa, data, access.size, access.write)
        if not access.write:
            self._pending = _Load(access.address, access.size)
        return self._exit(KVM_EXIT_MMIO)

    def _hypercall(self, engine: Engine) -> int | None:
        number, gpa, pages, attributes = engine.read_general(RAX, RBX, RCX, RDX)
        result = _NO_SUCH_CALL
        if number == _MAP_GPA_RANGE and self.hypercall_exits & 1 << _MAP_GPA_RANGE:
            if pages and not gpa & 0xFFF:
                struct.pack_into("<Q6QQQ", self._run, _DATA, number, gpa, pages, attributes, 0, 0, 0, 0, 1)
                self._pending = _HypercallResult()
                return self._exit(_HYPERCALL)
            result = _BAD_ARGUMENT
        engine.write_general(RAX, result % (1 << 64))
        engine.rip += len(_CALLS[0])
        return None

    def _complete(self, engine: Engine) -> None:
        """Finish what the last exit left to be done."""
        pending, self._pending = self._pending, None
        run = self._run
        if isinstance(pending, _PortInput):
            value = int.from_bytes(run[_PORT_DATA : _PORT_DATA + pending.size], "little")
            if pending.size < 4:  # the rest of RAX stays; four bytes clear the upper half
                mask = (1 << 8 * pending.size) - 1
                value |= engine.read_general(RAX)[0] & ~mask
            engine.write_general(RAX, value)
        elif isinstance(pending, _HypercallResult):
            (result,) = struct.unpack_from("<Q", run, _HYPERCALL_RESULT)
            engine.write_general(RAX, result)
            engine.rip += len(_CALLS[0])
        elif isinstance(pending, _Load):
            engine.step_on_scratch(pending.address, bytes(run[_DATA + 8 : _DATA + 8 + pending.size]))
        if pending is not None:
            self._saved = False

    # -- exits -------------------------------------------------------------------------------------------------------

    def _end(self, stop: Stop) -> int:
        """The exit of what no guest code can handle."""
        if isinstance(stop, Shutdown):
            return self._exit(_SHUTDOWN)
        if isinstance(stop, NoMemory):
            if stop.kind == "memory_fault":
                flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if stop.private else 0
                struct.pack_into("<QQQ", self._run, _DATA, flags, stop.gpa & ~0xFFF, 4096)
                self._exit(KVM_EXIT_MEMORY_FAULT)
                return -stop.errno
            if stop.kind == "host_error":
                missing = self._memory.unknown(stop.gpa)
                if missing is not None:
                    raise AskAgain(*missing)
                return self.end_without_page()
        data = stop.data if isinstance(stop, Internal) else ()
        suberror = stop.suberror if isinstance(stop, Internal) else Internal.EMULATION
        struct.pack_into("<II", self._run, _DATA, suberror, len(data))
        for index, word in enumerate(data):
            struct.pack_into("<Q", self._run, _DATA + 8 + 8 * index, word)
        return self._exit(_INTERNAL)

    def end_without_page(self) -> int:
        """The host has no page for an access: KVM_RUN fails and says no more."""
        self._exit(KVM_EXIT_UNKNOWN)
        return -errno.EFAULT

    def _exit(self, reason: int) -> int:
        struct.pack_into("<I", self._run, _EXIT_REASON, reason)
        self._run[_READY] = self._run[_READY + 1] = 1  # ready for interrupts, IF set
        counts = self._memory.counts.exits
        name = _NAMES[reason]
        counts[name] = counts.get(name, 0) + 1
        return 0
