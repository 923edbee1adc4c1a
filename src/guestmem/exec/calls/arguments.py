"""The arguments of KVM's ioctls in the program's memory, as ``kvm.structs`` lays them out."""

from __future__ import annotations

import struct

from guestmem.exec import peer
from guestmem.exec.listener import ProgramCall
from guestmem.uapi import KVMIO

__all__ = ("REQUEST", "argument", "fetch", "request", "signed32", "signed64", "store")


def REQUEST(minor: int, direction: int = 0, size: int = 0) -> int:  # noqa: N802 (the kernel's _IOC)
    """_IOC(direction, KVMIO, minor, size): direction 1 the kernel reads, 2 it writes, 3 both."""
    return direction << 30 | size << 16 | KVMIO << 8 | minor


def request(call: ProgramCall) -> int:
    """The ioctl's request, a u32."""
    return call.arguments[1] & 0xFFFFFFFF


def argument(call: ProgramCall) -> int:
    """The ioctl's argument: a number, or an address in the program."""
    return call.arguments[2]


def fetch(call: ProgramCall, layout: struct.Struct) -> tuple[int, ...]:
    """The fields of the argument; KvmError EFAULT."""
    return layout.unpack(peer.fetch(call.tid, call.arguments[2], layout.size))


def store(call: ProgramCall, data: bytes, offset: int = 0) -> None:
    """Write into the argument; KvmError EFAULT."""
    peer.store(call.tid, call.arguments[2] + offset, data)


def signed64(value: int) -> int:
    """A register as a signed number."""
    return value - (1 << 64) if value >> 63 else value


def signed32(value: int) -> int:
    """The low half of a register as a C int."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value
