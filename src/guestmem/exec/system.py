"""System calls that Python has no function for (x86-64): the supervisor's only use of ctypes.

Failures come back as OSError with the kernel's errno. Numbers are from the uapi headers named beside them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from ctypes import c_char, c_char_p, c_int, c_long, c_size_t, c_ssize_t, c_uint64, c_ulong, c_ushort, c_void_p
from typing import Any, Final

__all__ = (
    "Registers",
    "address_of",
    "fallocate",
    "install_filter",
    "inotify_add_watch",
    "inotify_init",
    "inotify_rm_watch",
    "die_with_parent",
    "ptrace",
    "read_memory",
    "write_memory",
)

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.argtypes = [c_ulong, c_ulong, c_ulong, c_void_p]
_LIBC.ptrace.restype = c_long
_LIBC.process_vm_readv.argtypes = [c_int, c_void_p, c_ulong, c_void_p, c_ulong, c_ulong]
_LIBC.process_vm_readv.restype = c_ssize_t
_LIBC.process_vm_writev.argtypes = [c_int, c_void_p, c_ulong, c_void_p, c_ulong, c_ulong]
_LIBC.process_vm_writev.restype = c_ssize_t
_LIBC.fallocate.argtypes = [c_int, c_int, c_long, c_long]
_LIBC.prctl.argtypes = [c_int, c_ulong, c_ulong, c_ulong, c_ulong]
_LIBC.inotify_add_watch.argtypes = [c_int, c_char_p, ctypes.c_uint]

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38  # linux/prctl.h
_SYS_SECCOMP = 317
_SECCOMP_SET_MODE_FILTER, _SECCOMP_FILTER_FLAG_NEW_LISTENER = 1, 8  # linux/seccomp.h
_IN_NONBLOCK: Final = os.O_NONBLOCK


class Registers(ctypes.Structure):
    """struct user_regs_struct (x86-64)."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
            *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    )


class _Iovec(ctypes.Structure):
    _fields_ = (("base", c_void_p), ("len", c_size_t))


class _Program(ctypes.Structure):
    _fields_ = (("len", c_ushort), ("filter", c_void_p))


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")


def read_memory(pid: int, address: int, size: int) -> bytes:
    """size bytes of a process at address (process_vm_readv); OSError, EFAULT where a byte of them cannot be read."""
    buffer = ctypes.create_string_buffer(size)
    local, remote = _Iovec(ctypes.addressof(buffer), size), _Iovec(address, size)
    got = _LIBC.process_vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if got == size:
        return buffer.raw
    if got < 0:
        raise _failed("process_vm_readv")
    raise OSError(errno.EFAULT, "process_vm_readv: only a part could be read")


def write_memory(pid: int, address: int, data: bytes) -> None:
    """Store data in a process (process_vm_writev); OSError, EFAULT where a byte of it cannot be stored."""
    size = len(data)
    buffer = ctypes.create_string_buffer(data, size)
    local, remote = _Iovec(ctypes.addressof(buffer), size), _Iovec(address, size)
    done = _LIBC.process_vm_writev(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done < 0:
        raise _failed("process_vm_writev")
    if done != size:
        raise OSError(errno.EFAULT, "process_vm_writev: only a part could be written")


def address_of(buffer: Any) -> int:
    """Where a writable buffer lies in this process's memory; it must outlive whoever uses the address."""
    return ctypes.addressof(c_char.from_buffer(buffer))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with its mode, which os.posix_fallocate lacks."""
    if _LIBC.fallocate(fd, mode, offset, length):
        raise _failed("fallocate")


def install_filter(program: bytes) -> int:
    """Put this process under a seccomp filter with user notification, for good; the listener's descriptor."""
    buffer = ctypes.create_string_buffer(program, len(program))
    described = _Program(len(program) // 8, ctypes.addressof(buffer))
    if _LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _failed("prctl(PR_SET_NO_NEW_PRIVS)")
    flags = _SECCOMP_FILTER_FLAG_NEW_LISTENER
    fd = int(_LIBC.syscall(_SYS_SECCOMP, _SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(described)))
    if fd < 0:
        raise _failed("seccomp")
    return fd


def die_with_parent(signal: int) -> None:
    """This process gets a signal when its parent dies."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal, 0, 0, 0)


def ptrace(request: int, tid: int, address: int = 0, data: ctypes.Structure | int | None = None) -> None:
    """ptrace(2) for requests that return no value; OSError, ESRCH where the thread is gone or does not stand still."""
    pointer = ctypes.addressof(data) if isinstance(data, ctypes.Structure) else data
    if _LIBC.ptrace(request, tid, address, pointer) == -1:
        raise _failed("ptrace")


def inotify_init() -> int:
    """A non-blocking inotify descriptor."""
    fd = int(_LIBC.inotify_init1(_IN_NONBLOCK | os.O_CLOEXEC))
    if fd < 0:
        raise _failed("inotify_init1")
    return fd


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """Watch a file; the watch's number."""
    watch = int(_LIBC.inotify_add_watch(fd, path.encode(), mask))
    if watch < 0:
        raise _failed("inotify_add_watch")
    return watch


def inotify_rm_watch(fd: int, watch: int) -> None:
    """End a watch; one that is gone is no error."""
    _LIBC.inotify_rm_watch(fd, watch)


def signal_mask(mask: int) -> ctypes.Structure:
    """A signal set as PTRACE_SETSIGMASK takes it."""
    return _SignalSet.from_buffer_copy(struct.pack("<Q", mask))


class _SignalSet(ctypes.Structure):
    _fields_ = (("bits", c_uint64),)
