"""The calls on any descriptor but fallocate and mmap: open by name, truncate, seek, read, write, sync.

The generic layer looks at its arguments before the file is asked; what each kind of file answers is data in ``files``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from guestmem.model.auxiliary import MemFd
from guestmem.model.checks import Check, require
from guestmem.model.files import EVENTFD, LINK, PIPE, FileKind, OpenFile, PathFile
from guestmem.model.restrictedmem import calls as restrictedmem
from guestmem.model.restrictedmem.file import RestrictedMem

__all__ = ("fsync", "ftruncate", "lseek", "reopen", "transfer", "transfer_at")

_O_CREAT, _O_EXCL = 0o100, 0o200
_O_DIRECTORY, _O_NOFOLLOW, _O_PATH = 0o200000, 0o400000, 0o10000000


@dataclass(frozen=True, slots=True)
class FileCall:
    """A call on a descriptor: the file behind it (None: not open), and those arguments that it has; bytes."""

    file: OpenFile | None
    length: int = 0
    offset: int = 0
    whence: int = 0
    oflags: int = 0
    writes: bool = False

    @property
    def kind(self) -> FileKind:
        """What the open file is."""
        assert self.file is not None
        return self.file.kind


FD_OPEN: Check[FileCall] = Check(
    "descriptor-open",
    errno.EBADF,
    "the descriptor must be open",
    "fdget",
    lambda r: r.file is not None,
    lambda r: "not open" if r.file is None else r.kind.name,
)


def _name_must(name: str, errno: int, rule: str, source: str, passes: Callable[[int], bool]) -> Check[FileCall]:
    return Check(name, errno, rule, source, lambda r: passes(r.oflags), lambda r: f"oflags={r.oflags:#o}")


# The name is a symbolic link, and not one to a directory.
NAME_CHECKS: tuple[Check[FileCall], ...] = (
    _name_must(
        "name-is-new",
        errno.EEXIST,
        "O_CREAT with O_EXCL must not find the name",
        "do_open",
        lambda oflags: not (oflags & _O_CREAT and oflags & _O_EXCL) or bool(oflags & _O_PATH),
    ),
    _name_must(
        "name-is-directory",
        errno.ENOTDIR,
        "O_DIRECTORY must find a directory",
        "do_open",
        lambda oflags: not oflags & _O_DIRECTORY,
    ),
    _name_must(
        "name-is-no-link",
        errno.ELOOP,
        "O_NOFOLLOW must not find a symbolic link, unless only the path is opened",
        "may_open",
        lambda oflags: not oflags & _O_NOFOLLOW or bool(oflags & _O_PATH),
    ),
)


def _file_can(name: str, rule: str, source: str, errno_of: Callable[[FileCall], int]) -> Check[FileCall]:
    """The kind of file must have the operation; if it has not, it says with which errno."""
    return Check(name, errno_of, rule, source, lambda r: not errno_of(r), lambda r: r.kind.name)


CAN_REOPEN = _file_can(
    "file-can-be-opened",
    "the file must have an open operation: anonymous inodes have none",
    "do_dentry_open",
    lambda r: r.kind.reopen_errno,
)
CAN_FSYNC = _file_can(
    "file-has-fsync",
    "the file must have a sync operation: a guest_memfd has none",
    "vfs_fsync_range",
    lambda r: r.kind.fsync_errno,
)

FTRUNCATE_CHECKS: tuple[Check[FileCall], ...] = (
    Check(
        "length-not-negative",
        errno.EINVAL,
        "length must not be negative",
        "do_sys_ftruncate",
        lambda r: r.length >= 0,
        lambda r: f"length={r.length:#x}",
    ),
    FD_OPEN,
    Check(
        "size-can-change",
        errno.EINVAL,
        "the file's size must be one that can change: that of a guest_memfd is fixed",
        "kvm_gmem_setattr",
        lambda r: isinstance(r.file, MemFd | RestrictedMem),
        lambda r: r.kind.name,
    ),
)

LSEEK_CHECKS: tuple[Check[FileCall], ...] = (
    Check(
        "whence-known",
        errno.EINVAL,
        "whence must be SEEK_SET, CUR, END, DATA or HOLE",
        "ksys_lseek",
        lambda r: 0 <= r.whence <= 4,
        lambda r: f"whence={r.whence}",
    ),
    _file_can("file-seekable", "the file must have a position", "vfs_llseek", lambda r: r.kind.lseek_errno),
    Check(
        "offset-in-file",
        lambda r: errno.ENXIO if r.whence > 2 else errno.EINVAL,
        "the new position must not be negative; DATA and HOLE need an offset inside the file",
        "shmem_file_llseek",
        lambda r: not isinstance(r.file, MemFd) or r.file.position_at(r.offset, r.whence) >= 0,
        lambda r: f"offset={r.offset:#x} whence={r.whence}",
    ),
)


def _transfer_checks(name: str, errno_of: Callable[[FileCall], int]) -> tuple[Check[FileCall], ...]:
    return (
        _file_can(f"file-has-{name}", f"the file must have a {name} operation", f"vfs_{name}", errno_of),
        Check(
            "length-of-counter",
            errno.EINVAL,
            "an eventfd takes 8 bytes",
            f"eventfd_{name}",
            lambda r: r.kind is not EVENTFD or r.length == 8 or (r.length > 8 and not r.writes),
            lambda r: f"length={r.length}",
        ),
        Check(
            "file-has-data",
            errno.EAGAIN,
            "there must be something to read: the call would block",
            f"vfs_{name}",
            lambda r: r.writes or not (r.kind is EVENTFD or (r.kind is PIPE and r.length > 0)),
            lambda r: r.kind.name,
        ),
    )


READ_CHECKS = _transfer_checks("read", lambda r: r.kind.read_errno)
WRITE_CHECKS = _transfer_checks("write", lambda r: r.kind.write_errno)

POSITIONED_CHECKS: tuple[Check[FileCall], ...] = (
    Check(
        "offset-not-negative",
        errno.EINVAL,
        "the offset must not be negative",
        "ksys_pread64, ksys_pwrite64",
        lambda r: r.offset >= 0,
        lambda r: f"offset={r.offset:#x}",
    ),
    FD_OPEN,
    _file_can(
        "file-has-positions",
        "the file must take positioned reads and writes",
        "ksys_pread64, ksys_pwrite64",
        lambda r: r.kind.positioned_errno,
    ),
)


def reopen(file: OpenFile, oflags: int) -> OpenFile:
    """A new open file of the same inode; EEXIST, ENOTDIR, ELOOP for the name, ENXIO for anonymous inodes."""
    require(NAME_CHECKS, FileCall(file, oflags=oflags))
    if oflags & _O_NOFOLLOW:
        return PathFile(OpenFile(LINK))
    if isinstance(file, PathFile):
        file = file.named
    if oflags & _O_PATH:
        return PathFile(file)
    require((CAN_REOPEN,), FileCall(file, oflags=oflags))
    if isinstance(file, MemFd):
        file.get()  # one inode, and nothing here depends on which description is used
        return file
    return OpenFile(file.kind)


def ftruncate(file: OpenFile | None, length: int) -> None:
    """ftruncate(2): a negative length is EINVAL before the descriptor is looked at; a guest_memfd's size is fixed."""
    require(FTRUNCATE_CHECKS, FileCall(file, length))
    if isinstance(file, RestrictedMem):
        restrictedmem.ftruncate(file, length)
        return
    assert isinstance(file, MemFd)
    file.ftruncate(length)


def lseek(file: OpenFile, offset: int, whence: int) -> int:
    """lseek(2): EINVAL for an unknown whence comes before ESPIPE."""
    require(LSEEK_CHECKS, FileCall(file, offset=offset, whence=whence))
    if not isinstance(file, MemFd):
        return 0
    file.position = file.position_at(offset, whence)
    return file.position


def transfer(file: OpenFile, call: Literal["read", "write"], length: int) -> int:
    """read(2) and write(2) with a valid buffer."""
    writes = call == "write"
    require(WRITE_CHECKS if writes else READ_CHECKS, FileCall(file, length, writes=writes))
    if isinstance(file, MemFd):
        return file.transfer(length, writes=writes)
    return length if writes else 0


def transfer_at(file: OpenFile | None, call: Literal["pread", "pwrite"], length: int, offset: int) -> int:
    """pread(2) and pwrite(2): a negative offset is EINVAL before the descriptor is looked at."""
    writes = call == "pwrite"
    require(POSITIONED_CHECKS, FileCall(file, length, offset, writes=writes))
    if isinstance(file, MemFd):
        return file.transfer_at(length, offset, writes=writes)
    return length if writes else 0


def fsync(file: OpenFile) -> None:
    """fsync(2): EINVAL for files without the operation, a guest_memfd among them."""
    require((CAN_FSYNC,), FileCall(file))
