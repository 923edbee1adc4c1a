"""System calls through libc: arguments go to the kernel as they are, failures come back as KvmError.

Python's own wrappers (os, mmap, fcntl) check, retry or convert arguments; here -1, 9999 or an odd whence must reach the
kernel, and its errno must come back. Numbers are converted to the C types below modulo their width, except descriptors:
2**32 would become 0, and close() of it would close what the program has there, so what no C int holds is passed as -1.
Only the calls that ``guestmem.kvm`` and the first process of the lab make are declared.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_uint, c_ulong, c_void_p
from types import MappingProxyType
from typing import Any, Final

from guestmem.errors import KvmError

__all__ = ("address_of", "call", "no_effect", "try_call")

_OFF, _ADDR = c_int64, c_ulong  # addresses travel as numbers: most of them are not valid pointers


class _FD(c_int):
    """A descriptor, distinguished from other ints."""


_INT = range(-(1 << 31), 1 << 31)
_LIBC = ctypes.CDLL(None, use_errno=True)

_SIGNATURES: Final[Mapping[str, tuple[tuple[Any, ...], Any]]] = MappingProxyType(
    {
        "open": ((c_char_p, c_int, c_uint), c_int),
        "close": ((_FD,), c_int),
        "dup": ((_FD,), c_int),
        "fallocate": ((_FD, c_int, _OFF, _OFF), c_int),
        "ftruncate": ((_FD, _OFF), c_int),
        "lseek": ((_FD, _OFF, c_int), c_int64),
        "read": ((_FD, _ADDR, c_size_t), c_int64),
        "write": ((_FD, _ADDR, c_size_t), c_int64),
        "pread": ((_FD, _ADDR, c_size_t, _OFF), c_int64),
        "pwrite": ((_FD, _ADDR, c_size_t, _OFF), c_int64),
        "fsync": ((_FD,), c_int),
        "ioctl": ((_FD, c_ulong, c_ulong), c_int),
        "mmap": ((_ADDR, c_size_t, c_int, c_int, _FD, _OFF), c_int64),
        "munmap": ((_ADDR, c_size_t), c_int),
        "mprotect": ((_ADDR, c_size_t, c_int), c_int),
        "madvise": ((_ADDR, c_size_t, c_int), c_int),
        "vmsplice": ((_FD, _ADDR, c_size_t, c_uint), c_int64),
        "sigaction": ((c_int, c_void_p, c_void_p), c_int),
        "timer_create": ((c_int, c_void_p, c_void_p), c_int),
        "timer_settime": ((c_void_p, c_int, c_void_p, c_void_p), c_int),
        "timer_delete": ((c_void_p,), c_int),
        "mount": ((c_char_p, c_char_p, c_char_p, c_ulong, c_char_p), c_int),
        "reboot": ((c_int,), c_int),
        "syscall": ((c_ulong, _FD, c_char_p, c_int), c_int64),  # finit_module
    }
)


def _declared(name: str) -> Any:
    function = getattr(_LIBC, name)
    function.argtypes, function.restype = _SIGNATURES[name]
    return function


_FUNCTIONS: Final = {name: _declared(name) for name in _SIGNATURES}
_DESCRIPTOR_AT: Final = {name: types.index(_FD) for name, (types, _) in _SIGNATURES.items() if _FD in types}


def no_effect() -> int:
    """The address of a C function that changes nothing, whatever it is called with: a signal handler."""
    return ctypes.cast(_LIBC.getpid, c_void_p).value or 0


def try_call(name: str, *arguments: object) -> tuple[int, int]:
    """Make the call once: (return value, errno), errno 0 unless the value is -1."""
    at = _DESCRIPTOR_AT.get(name)
    if at is not None and arguments[at] not in _INT:
        arguments = (*arguments[:at], -1, *arguments[at + 1 :])
    value: int = _FUNCTIONS[name](*arguments)
    return value, ctypes.get_errno() if value == -1 else 0


def call(name: str, reason: str, *arguments: object) -> int:
    """Make the call once; KvmError with the kernel's errno and the reason given."""
    value, failed = try_call(name, *arguments)
    if failed:
        raise KvmError(failed, f"{reason}: {os.strerror(failed)}")
    return value


def address_of(buffer: bytearray) -> int:
    """Where the bytes of the buffer are, for as long as it is kept and not resized; 0 if it is empty."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer)) if buffer else 0
