"""Deliver an exception through the guest's own IDT, in 64-bit mode (Intel SDM volume 3, 6.14).

The engine has no such path of its own; IRET works there natively.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final, Protocol

from guestmem.exec.vcpu.state import Table
from guestmem.exec.vcpu.stops import Internal, NoMemory, Shutdown, Stop

__all__ = ("Frame", "GuestVirtual", "deliver")

_GATE: Final = struct.Struct("<HHBBHI4x")
_PRESENT, _INTERRUPT_GATE = 0x80, 14
_TF_NT_RF, _IF = 1 << 8 | 1 << 14 | 1 << 16, 1 << 9
_IST: Final = 36  # offset of IST1 in the task state segment
_EPT_VIOLATION: Final = 49  # exit reason that KVM reports with an exception whose delivery met MMIO
_VALID: Final = 1 << 31


class GuestVirtual(Protocol):
    """Guest-virtual memory; both raise Stop."""

    def read(self, address: int, size: int) -> bytes:
        """size bytes at a guest-virtual address."""

    def write(self, address: int, data: bytes) -> None:
        """Store at a guest-virtual address."""


@dataclass(slots=True)
class Frame:
    """What the delivery reads and changes."""

    rip: int
    rsp: int
    rflags: int
    cs: int  # selectors
    ss: int
    idt: Table
    tss: int  # base of the task state segment


def deliver(memory: GuestVirtual, frame: Frame, vector: int, code: int | None) -> None:
    """Push the frame and go to the handler; Shutdown, or Internal where the tables are MMIO."""
    base, limit = frame.idt
    if 16 * vector + 15 > limit:
        raise Shutdown
    try:
        gate = memory.read(base + 16 * vector, 16)
    except NoMemory as stop:
        if stop.kind == "mmio":
            raise Internal(Internal.DELIVERY, _VALID | vector, _EPT_VIOLATION, 0, stop.gpa, 0) from stop
        raise
    except Stop as stop:
        raise Shutdown from stop
    low, _, stack, type, middle, high = _GATE.unpack(gate)
    if not type & _PRESENT:
        raise Shutdown
    rsp = frame.rsp
    try:
        if stack & 7:
            (rsp,) = struct.unpack("<Q", memory.read(frame.tss + _IST + 8 * ((stack & 7) - 1), 8))
        pushed = struct.pack("<5Q", frame.rip, frame.cs, frame.rflags, frame.rsp, frame.ss)
        if code is not None:
            pushed = struct.pack("<Q", code) + pushed
        rsp = (rsp & -16) - len(pushed)
        memory.write(rsp, pushed)
    except Stop as stop:
        raise Shutdown from stop
    frame.rip, frame.rsp = low | middle << 16 | high << 32, rsp
    frame.rflags &= ~(_TF_NT_RF | (_IF if type & 15 == _INTERRUPT_GATE else 0))
