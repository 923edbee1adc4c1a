"""The descriptors of this process that the backend made, and the calls that any file has.

A descriptor is an int and goes to the kernel as it is, also if it was never open. What is remembered is only which
descriptors are still to be closed at the end.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Final

from guestmem.backend import AuxKind, FileStat
from guestmem.errors import BackendUnavailable, KvmError
from guestmem.harness import PAGE_SIZE
from guestmem.kvm import libc
from guestmem.uapi import DEV_KVM

__all__ = ("Files", "open_device")

# What procfs shows for a guest_memfd: up to 6.18 an anonymous inode, then a file of its own file system.
_GUEST_MEMFD_LINKS: Final = ("anon_inode:[kvm-gmem]", "/[kvm-gmem] (deleted)")
_IOVEC: Final = struct.Struct("<QQ")  # struct iovec: iov_base, iov_len
_REMEDIES: Final = {
    errno.ENOENT: "load the modules kvm and kvm_amd or kvm_intel, and enable virtualization in the firmware",
    errno.EACCES: "join the group that owns it (usually kvm) or run as root",
    errno.EPERM: "let the container or sandbox have the device",
}


def open_device() -> int:
    """Open /dev/kvm read-write; BackendUnavailable if that cannot be."""
    try:
        return libc.call("open", f"open({DEV_KVM!r})", DEV_KVM.encode(), os.O_RDWR | os.O_CLOEXEC, 0)
    except KvmError as error:
        remedy = _REMEDIES.get(error.errno or 0, "see the kernel log")
        raise BackendUnavailable(f"{DEV_KVM} cannot be opened ({error.name}): {remedy}") from error


class Files:
    """Descriptors made here; ``open_now`` lists those that are still open."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def installed(self, fd: int) -> int:
        """Remember a new descriptor."""
        self._open.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """close(2)."""
        libc.call("close", f"close({fd=})", fd)
        self._open.discard(fd)

    def open_now(self) -> list[int]:
        """The descriptors made here that are still open."""
        return sorted(self._open)

    def dup(self, fd: int) -> int:
        """dup(2)."""
        return self.installed(libc.call("dup", f"dup({fd=})", fd))

    def reopen(self, fd: int, oflags: int) -> int:
        """open(2) of /proc/self/fd/N."""
        path = f"/proc/self/fd/{fd}"
        return self.installed(libc.call("open", f"open({path!r}, {oflags:#x})", path.encode(), oflags, 0o600))

    def open_aux(self, kind: AuxKind) -> int:
        """A memfd of size 0, an eventfd of count 0, the read end of an empty pipe, or /dev/null; none of them waits."""
        if kind == "pipe":
            read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            self.installed(write_end)  # open until the end, so that a read finds the pipe empty and not at its end
            return self.installed(read_end)
        return self.installed(_AUX[kind]())

    def pin(self, addr: int, length: int) -> int:
        """The read end of a pipe that holds the pages of [addr, addr + length); EFAULT, ENOMEM where no pipe can."""
        reason = f"vmsplice({addr=:#x}, {length=:#x})"
        pages = addr % PAGE_SIZE + length
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ) < pages:
                with suppress(OSError):
                    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, pages)
            room = fcntl.fcntl(writing, fcntl.F_GETPIPE_SZ)
            vector = bytearray(_IOVEC.pack(addr, length))
            if libc.call("vmsplice", reason, writing, libc.address_of(vector), 1, os.SPLICE_F_NONBLOCK) < length:
                raise KvmError(errno.ENOMEM if room < pages else errno.EFAULT, f"{reason}: only a part was taken")
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return self.installed(reading)

    def fstat(self, fd: int) -> FileStat | None:
        """fstat(2); answered for a guest_memfd only."""
        try:
            found = os.stat(fd) if fd >= 0 else None  # Python refuses a negative one with an error of its own
        except OverflowError:
            found = None
        except OSError as error:
            raise KvmError(error.errno or 0, f"fstat({fd=})") from error
        if found is None:
            raise KvmError(errno.EBADF, f"fstat({fd=})")
        if not stat.S_ISREG(found.st_mode) or str(Path(f"/proc/self/fd/{fd}").readlink()) not in _GUEST_MEMFD_LINKS:
            return None
        return FileStat(found.st_size, found.st_blocks, found.st_blksize, found.st_mode, found.st_nlink)

    def fallocate(self, fd: int, mode: int, offset: int, len: int) -> None:
        """fallocate(2)."""
        libc.call("fallocate", f"fallocate({fd=}, {mode=:#x}, {offset=:#x}, {len=:#x})", fd, mode, offset, len)

    def ftruncate(self, fd: int, length: int) -> None:
        """ftruncate(2)."""
        libc.call("ftruncate", f"ftruncate({fd=}, {length=:#x})", fd, length)

    def lseek(self, fd: int, offset: int, whence: int) -> int:
        """lseek(2)."""
        return libc.call("lseek", f"lseek({fd=}, {offset=:#x}, {whence=})", fd, offset, whence)

    def transfer(self, name: str, fd: int, len: int) -> int:
        """read(2) or write(2) with a buffer of zeros."""
        buffer = bytearray(len)
        return libc.call(name, f"{name}({fd=}, {len=:#x})", fd, libc.address_of(buffer), len)

    def transfer_at(self, name: str, fd: int, len: int, offset: int) -> int:
        """pread(2) or pwrite(2) with a buffer of zeros."""
        buffer = bytearray(len)
        return libc.call(name, f"{name}({fd=}, {len=:#x}, {offset=:#x})", fd, libc.address_of(buffer), len, offset)

    def fsync(self, fd: int) -> None:
        """fsync(2)."""
        libc.call("fsync", f"fsync({fd=})", fd)


_AUX: Final[Mapping[AuxKind, Callable[[], int]]] = MappingProxyType(
    {
        "memfd": lambda: os.memfd_create("guestmem", os.MFD_CLOEXEC),
        "eventfd": lambda: os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC),
        "devnull": lambda: os.open(os.devnull, os.O_RDWR),
    }
)
