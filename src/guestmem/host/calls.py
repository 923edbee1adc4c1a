"""The system calls that looking at VMs needs and Python has no wrapper for; with no decision of its own.

bpf(2) and pidfd_getfd(2). Failures are OSError with the kernel's errno. This
is the only module of the package that touches ctypes, ioctl or mmap.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

__all__ = ("SharedMap", "bpf_create_map", "bpf_load", "bpf_run", "pidfd_getfd")

_LIBC = ctypes.CDLL(None, use_errno=True)
_BPF, _PIDFD_GETFD = 321, 438  # x86-64
_MAP_CREATE, _PROG_LOAD, _PROG_RUN = 0, 5, 10
_MAP_TYPE_ARRAY, _MAP_MMAPABLE = 2, 1 << 10
_PROG_TYPE_SYSCALL, _PROG_SLEEPABLE = 31, 1 << 4
_ATTR_SIZE = 152


class SharedMap:
    """The value of a BPF array map, mapped into this process: written and read without a system call."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self._bytes = mmap.mmap(fd, (size + 4095) // 4096 * 4096)

    def read(self, offset: int, length: int) -> bytes:
        """A copy of these bytes."""
        return self._bytes[offset : offset + length]

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes there."""
        self._bytes[offset : offset + len(data)] = data

    def close(self) -> None:
        """Unmap it and close the map."""
        self._bytes.close()
        os.close(self.fd)


def bpf_create_map(size: int) -> SharedMap:
    """An array map with one value of ``size`` bytes. EPERM: without CAP_BPF."""
    fd = _bpf(_MAP_CREATE, struct.pack("<IIIII", _MAP_TYPE_ARRAY, 4, size, 1, _MAP_MMAPABLE))
    try:
        return SharedMap(fd, size)
    except BaseException:
        os.close(fd)
        raise


def bpf_load(code: bytes, name: bytes) -> int:
    """Load a program of type SYSCALL; its descriptor. EINVAL: refused (lockdown). EPERM: no CAP_BPF or CAP_PERFMON."""
    program, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQIIQII16s",
        _PROG_TYPE_SYSCALL,
        len(code) // 8,
        ctypes.addressof(program),
        ctypes.addressof(licence),
        0,
        0,
        0,
        0,
        _PROG_SLEEPABLE,
        name,
    )
    return _bpf(_PROG_LOAD, attributes)


def bpf_run(program: int) -> None:
    """Run a loaded program once, in this thread."""
    _bpf(_PROG_RUN, struct.pack("<II", program, 0))


def pidfd_getfd(pid: int, fd: int) -> int:
    """A copy of another process's descriptor, to be closed by the caller. EPERM: without CAP_SYS_PTRACE."""
    process = os.pidfd_open(pid)
    try:
        copy: int = _LIBC.syscall(_PIDFD_GETFD, process, fd, 0)
        if copy < 0:
            _fail()
        os.set_inheritable(copy, False)
        return copy
    finally:
        os.close(process)


def _bpf(command: int, attributes: bytes) -> int:
    buffer = ctypes.create_string_buffer(attributes.ljust(_ATTR_SIZE, b"\0"), _ATTR_SIZE)
    result: int = _LIBC.syscall(_BPF, command, buffer, _ATTR_SIZE)
    if result < 0:
        _fail()
    return result


def _fail() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))
