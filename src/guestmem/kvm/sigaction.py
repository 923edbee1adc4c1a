"""sigaction(2) with the handlers that Python cannot install: machine code, in whatever thread."""

from __future__ import annotations

import struct
from typing import Final

from guestmem.kvm import libc

__all__ = ("action", "exchange", "space")

_SIGACTION: Final = struct.Struct("=Q128sIxxxxQ")  # glibc: handler, mask, flags, restorer


def action(handler: int, flags: int) -> bytearray:
    """struct sigaction of a handler at this address, with no further signals blocked."""
    return bytearray(_SIGACTION.pack(handler, bytes(128), flags, 0))


def space() -> bytearray:
    """Room for a struct sigaction."""
    return bytearray(_SIGACTION.size)


def exchange(number: int, new: bytearray, old: bytearray | None = None) -> None:
    """Install new for a signal; what was there goes into old."""
    address = None if old is None else libc.address_of(old)
    libc.call("sigaction", f"sigaction of signal {number}", number, libc.address_of(new), address)
