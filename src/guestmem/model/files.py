"""Open files of the modelled process: what each kind of descriptor is to the generic file layer.

KVM's ioctls and the guest_memfd calls can be issued on the wrong kind of descriptor, and each answers with its own
errno. The kinds differ in a few properties that the generic layer asks about (fs/open.c, fs/read_write.c, mm/mmap.c);
those are data here. An ``OpenFile`` is the kernel's struct file: descriptors, dups and mappings share it and the last
one to go releases it.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Protocol

from guestmem.model.contents import Contents

__all__ = (
    "ANONYMOUS",
    "DEVNULL",
    "EVENTFD",
    "GUEST_MEMFD",
    "KVM_DEVICE",
    "LINK",
    "MEMFD",
    "PATH",
    "PIPE",
    "VCPU",
    "VM",
    "FileKind",
    "OpenFile",
    "PathFile",
    "Source",
)


class Source(Protocol):
    """Memory that a host mapping or a stage-2 leaf shows; offsets are bytes into it."""

    @property
    def contents(self) -> Contents:
        """The bytes."""

    def host_fault(self, start: int, end: int) -> None:
        """Make the pages of [start, end) present for the host; HostSignal where an access would end in one."""

    def discard(self, start: int, end: int) -> bool:
        """MADV_REMOVE of [start, end): free the pages; False where the source has no such operation."""


@dataclass(frozen=True, slots=True)
class FileKind:
    """What the generic layer sees of a file. An errno of 0 means the call works."""

    name: str
    pseudo: bool = False  # on a file system without a mount point, as anonymous inodes and pipes are
    regular: bool = False
    fifo: bool = False
    writable: bool = True
    lseek_errno: int = 0
    read_errno: int = errno.EINVAL
    write_errno: int = errno.EINVAL
    positioned_errno: int = errno.EINVAL  # pread and pwrite
    fsync_errno: int = errno.EINVAL
    reopen_errno: int = 0
    mmap: bool = False  # has an mmap operation
    unknown_ioctl_errno: int = errno.ENOTTY


KVM_DEVICE = FileKind("kvm", unknown_ioctl_errno=errno.EINVAL)
VM = FileKind("vm", pseudo=True, positioned_errno=errno.ESPIPE, reopen_errno=errno.ENXIO)
VCPU = FileKind(
    "vcpu",
    pseudo=True,
    positioned_errno=errno.ESPIPE,
    reopen_errno=errno.ENXIO,
    mmap=True,
    unknown_ioctl_errno=errno.EINVAL,
)
GUEST_MEMFD = FileKind(
    "guest_memfd",
    pseudo=True,
    regular=True,
    lseek_errno=errno.ESPIPE,
    positioned_errno=errno.ESPIPE,
    reopen_errno=errno.ENXIO,
)
EVENTFD = FileKind(
    "eventfd",
    pseudo=True,
    read_errno=0,
    write_errno=0,
    positioned_errno=errno.ESPIPE,
    reopen_errno=errno.ENXIO,
)
PIPE = FileKind(
    "pipe",
    pseudo=True,
    fifo=True,
    writable=False,
    lseek_errno=errno.ESPIPE,
    read_errno=0,
    write_errno=errno.EBADF,
    positioned_errno=errno.ESPIPE,
)
DEVNULL = FileKind("devnull", read_errno=0, write_errno=0, positioned_errno=0)
MEMFD = FileKind("memfd", regular=True, read_errno=0, write_errno=0, positioned_errno=0, fsync_errno=0, mmap=True)
ANONYMOUS = FileKind("anonymous memory", mmap=True)
PATH = FileKind("O_PATH descriptor")
LINK = FileKind("symbolic link", reopen_errno=errno.ELOOP)


class OpenFile:
    """An open file description: one or more descriptors and mappings share it."""

    __slots__ = ("kind", "references", "source")

    def __init__(self, kind: FileKind) -> None:
        self.kind = kind
        self.source: Source | None = None  # what a mapping of the file shows
        self.references = 1

    def get(self) -> None:
        """Take a reference (fget)."""
        self.references += 1

    def put(self) -> None:
        """Drop a reference; the last one releases the file (fput)."""
        self.references -= 1
        if self.references == 0:
            self.release()

    def release(self) -> None:
        """What the file does when nobody has it open any more."""


class PathFile(OpenFile):
    """An O_PATH descriptor: it names a file without having it open, so every operation on it is EBADF."""

    __slots__ = ("named",)

    def __init__(self, named: OpenFile) -> None:
        super().__init__(PATH)
        self.named = named
