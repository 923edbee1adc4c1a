"""The generic file layer above a guest_memfd: checks that come first, whatever the file is.

vfs_fallocate, do_mmap and friends look at their arguments before the file is asked. The files that are no guest_memfd
matter only as the wrong descriptor: what each answers is data in ``files``.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Literal

from guestmem.errors import KvmError
from guestmem.model.auxiliary import MemFd
from guestmem.model.checks import Check
from guestmem.model.files import EVENTFD, LINK, PATH, PIPE, OpenFile
from guestmem.model.gmem import GuestMemfd
from guestmem.model.profiles import Profile
from guestmem.uapi import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_WRITE_ZEROES,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    PROT_EXEC,
    PROT_WRITE,
)
from guestmem.units import S64_MAX, U64, U64_MAX, align_up

__all__ = (
    "MMAP_ANONYMOUS_CHECKS",
    "FALLOCATE_CHECKS",
    "MMAP_FILE_CHECKS",
    "MMAP_FIRST_CHECKS",
    "FallocateRequest",
    "MmapRequest",
)

_MAP_TYPE = 0xF
_LEGACY_MAP_MASK = 0x7C07F9F3  # flags that MAP_SHARED_VALIDATE knows without the file's help; not MAP_SYNC


# -- fallocate -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FallocateRequest:
    """fallocate(2); offset and length are signed bytes."""

    profile: Profile
    file: OpenFile
    mode: int
    offset: int
    length: int


def _mode_is_one_operation(request: FallocateRequest) -> bool:
    mode = request.mode
    if mode < 0 or mode & ~request.profile.fallocate_modes:
        return False
    operation = mode & ~FALLOC_FL_KEEP_SIZE
    if operation & (operation - 1):
        return False
    if operation == FALLOC_FL_PUNCH_HOLE:
        return bool(mode & FALLOC_FL_KEEP_SIZE)
    if operation in (FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_WRITE_ZEROES):
        return not mode & FALLOC_FL_KEEP_SIZE
    return True


FALLOCATE_CHECKS: tuple[Check[FallocateRequest], ...] = (
    Check(
        "range-positive",
        errno.EINVAL,
        "offset must not be negative and length must be positive",
        "vfs_fallocate",
        lambda r: r.offset >= 0 and r.length > 0,
        lambda r: f"offset={r.offset:#x} len={r.length:#x}",
    ),
    Check(
        "mode-is-one-operation",
        errno.EOPNOTSUPP,
        "mode must be one known operation, with KEEP_SIZE only where it goes with it",
        "vfs_fallocate",
        _mode_is_one_operation,
        lambda r: f"mode={r.mode:#x}",
        "PUNCH_HOLE needs KEEP_SIZE",
    ),
    Check(
        "file-writable",
        errno.EBADF,
        "the descriptor must be open for writing",
        "vfs_fallocate",
        lambda r: r.file.kind.writable,
        lambda r: r.file.kind.name,
    ),
    Check(
        "file-not-fifo",
        errno.ESPIPE,
        "the file must not be a pipe",
        "vfs_fallocate",
        lambda r: not r.file.kind.fifo,
        lambda r: r.file.kind.name,
    ),
    Check(
        "file-regular",
        errno.ENODEV,
        "the file must be a regular file",
        "vfs_fallocate",
        lambda r: r.file.kind.regular,
        lambda r: r.file.kind.name,
    ),
    Check(
        "range-end",
        errno.EFBIG,
        "offset + length must fit a signed 64-bit number",
        "vfs_fallocate",
        lambda r: r.offset + r.length <= S64_MAX,
        lambda r: f"offset={r.offset:#x} len={r.length:#x}",
    ),
    Check(
        "file-has-fallocate",
        errno.EOPNOTSUPP,
        "the file must have a fallocate operation",
        "vfs_fallocate",
        lambda r: isinstance(r.file, GuestMemfd | MemFd),
        lambda r: r.file.kind.name,
    ),
)


# -- mmap ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MmapRequest:
    """mmap(2) at address 0; length is a u64, offset signed, both bytes."""

    profile: Profile
    page_size: int
    file: OpenFile
    length: int
    prot: int
    flags: int
    offset: int

    @property
    def map_type(self) -> int:
        """MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE or something invalid."""
        return self.flags & _MAP_TYPE

    @property
    def shared(self) -> bool:
        """Either kind of shared mapping."""
        return self.map_type in (MAP_SHARED, MAP_SHARED_VALIDATE)

    @property
    def noexec(self) -> bool:
        """The file is on a noexec file system: newer kernels make every pseudo one so (SB_I_NOEXEC)."""
        return self.file.kind.pseudo and self.profile.gmem_mmap

    @property
    def size(self) -> int:
        """The length rounded up to pages."""
        return align_up(self.length, self.page_size)


def _largest_offset(request: MmapRequest) -> int:
    return S64_MAX if request.file.kind.regular else U64_MAX


MMAP_FIRST_CHECKS: tuple[Check[MmapRequest], ...] = (
    Check(
        "no-hugetlb-flag",
        errno.EINVAL,
        "MAP_HUGETLB is for hugetlbfs files",
        "ksys_mmap_pgoff",
        lambda r: not r.flags & MAP_HUGETLB,
        lambda r: f"flags={r.flags:#x}",
    ),
    Check(
        "length-not-zero",
        errno.EINVAL,
        "length must not be 0",
        "do_mmap",
        lambda r: r.length != 0,
        lambda r: f"length={r.length:#x}",
    ),
    Check(
        "length-no-wrap",
        errno.ENOMEM,
        "length rounded up to pages must not wrap",
        "do_mmap",
        lambda r: r.size < U64,
        lambda r: f"length={r.length:#x}",
    ),
)

MMAP_ANONYMOUS_CHECKS: tuple[Check[MmapRequest], ...] = (
    Check(
        "map-type",
        errno.EINVAL,
        "anonymous memory must be shared or private, and is not validated",
        "do_mmap",
        lambda r: r.map_type in (MAP_SHARED, MAP_PRIVATE),
        lambda r: f"flags={r.flags:#x}",
    ),
)

MMAP_FILE_CHECKS: tuple[Check[MmapRequest], ...] = (
    Check(
        "offset-representable",
        errno.EOVERFLOW,
        "the end of the mapping must be a valid file offset",
        "file_mmap_ok",
        # The offset is taken as unsigned; what is no regular file may have offsets up to 2**64.
        lambda r: (r.offset % U64) // r.page_size <= (_largest_offset(r) - r.size) // r.page_size,
        lambda r: f"offset={r.offset:#x} length={r.length:#x}",
    ),
    Check(
        "flags-known",
        errno.EOPNOTSUPP,
        "MAP_SHARED_VALIDATE takes only flags that the kernel knows",
        "do_mmap",
        lambda r: r.map_type != MAP_SHARED_VALIDATE or not r.flags & ~_LEGACY_MAP_MASK,
        lambda r: f"flags={r.flags:#x}",
    ),
    Check(
        "map-type",
        errno.EINVAL,
        "the mapping must be shared or private",
        "do_mmap",
        lambda r: r.shared or r.map_type == MAP_PRIVATE,
        lambda r: f"flags={r.flags:#x}",
    ),
    Check(
        "file-writable",
        errno.EACCES,
        "a shared writable mapping needs a writable descriptor",
        "do_mmap",
        lambda r: r.file.kind.writable or not r.shared or not r.prot & PROT_WRITE,
        lambda r: r.file.kind.name,
    ),
    Check(
        "mount-exec",
        errno.EPERM,
        "PROT_EXEC is refused on a noexec mount",
        "do_mmap",
        lambda r: not r.noexec or not r.prot & PROT_EXEC,
        lambda r: f"prot={r.prot:#x}",
    ),
    Check(
        "file-has-mmap",
        errno.ENODEV,
        "the file must have an mmap operation",
        "do_mmap",
        lambda r: r.profile.gmem_mmap if isinstance(r.file, GuestMemfd) else r.file.kind.mmap,
        lambda r: r.file.kind.name,
    ),
    Check(
        "no-growsdown",
        errno.EINVAL,
        "a file mapping cannot grow",
        "do_mmap",
        lambda r: not r.flags & MAP_GROWSDOWN,
        lambda r: f"flags={r.flags:#x}",
    ),
    Check(
        "gmem-mmap-flag",
        errno.ENODEV,
        "the guest_memfd must have been created with GUEST_MEMFD_FLAG_MMAP",
        "kvm_gmem_mmap",
        lambda r: not isinstance(r.file, GuestMemfd) or r.file.supports_mmap,
        lambda r: f"creation flags {r.file.flags:#x}" if isinstance(r.file, GuestMemfd) else "",
    ),
    Check(
        "gmem-mmap-shared",
        errno.EINVAL,
        "a guest_memfd can only be mapped MAP_SHARED",
        "kvm_gmem_mmap",
        lambda r: not isinstance(r.file, GuestMemfd) or r.shared,
        lambda r: f"flags={r.flags:#x}",
    ),
)


# -- the rest --------------------------------------------------------------------------------------------------------

_O_CREAT, _O_EXCL = 0o100, 0o200
_O_DIRECTORY, _O_NOFOLLOW, _O_PATH = 0o200000, 0o400000, 0o10000000


class PathFile(OpenFile):
    """An O_PATH descriptor: it names a file without having it open, so every operation on it is EBADF."""

    def __init__(self, named: OpenFile) -> None:
        super().__init__(PATH)
        self.named = named


def reopened(file: OpenFile, oflags: int) -> OpenFile:
    """A new open file of the same inode; ENXIO for anonymous inodes, which cannot be opened by name.

    The name is a symbolic link to what is no directory: EEXIST, ENOTDIR and ELOOP come first (do_open, may_open).
    """
    if oflags & _O_CREAT and oflags & _O_EXCL and not oflags & _O_PATH:
        raise KvmError(errno.EEXIST, f"{oflags=:#x}", check="name-is-new")
    if oflags & _O_DIRECTORY:
        raise KvmError(errno.ENOTDIR, f"{oflags=:#x}", check="name-is-directory")
    if oflags & _O_NOFOLLOW:
        if oflags & _O_PATH:
            return PathFile(OpenFile(LINK))
        raise KvmError(errno.ELOOP, f"{oflags=:#x}", check="name-is-no-link")
    if isinstance(file, PathFile):
        file = file.named
    if oflags & _O_PATH:
        return PathFile(file)
    if file.kind.reopen_errno:
        raise KvmError(file.kind.reopen_errno, file.kind.name, check="file-can-be-opened")
    if isinstance(file, MemFd):
        file.get()  # one inode, and nothing here depends on which description is used
        return file
    return OpenFile(file.kind)


def fallocate_aux(file: OpenFile, mode: int, offset: int, length: int) -> None:
    """fallocate on a file that is no guest_memfd; only a memfd gets this far."""
    assert isinstance(file, MemFd)
    file.fallocate(mode, offset, length)


def ftruncate(file: OpenFile | None, length: int) -> None:
    """ftruncate(2): a negative length is EINVAL before the descriptor is looked at; a guest_memfd's size is fixed."""
    if length < 0:
        raise KvmError(errno.EINVAL, f"{length=:#x}", check="length-not-negative")
    if file is None:
        raise KvmError(errno.EBADF, check="fd-open")
    if not isinstance(file, MemFd):
        raise KvmError(errno.EINVAL, file.kind.name, check="size-can-change")
    file.ftruncate(length)


def lseek(file: OpenFile, offset: int, whence: int) -> int:
    """lseek(2): EINVAL for an unknown whence comes before ESPIPE."""
    if not 0 <= whence <= 4:
        raise KvmError(errno.EINVAL, f"{whence=}", check="whence-known")
    if file.kind.lseek_errno:
        raise KvmError(file.kind.lseek_errno, file.kind.name, check="file-seekable")
    return file.lseek(offset, whence) if isinstance(file, MemFd) else 0


def transfer(file: OpenFile, call: Literal["read", "write"], length: int) -> int:
    """read(2) and write(2) with a valid buffer."""
    refused = file.kind.read_errno if call == "read" else file.kind.write_errno
    if refused:
        raise KvmError(refused, file.kind.name, check=f"file-has-{call}")
    if isinstance(file, MemFd):
        return file.transfer(call, length)
    if file.kind is EVENTFD:
        return _transfer_counter(call, length)
    if file.kind is PIPE and length:
        raise KvmError(errno.EAGAIN, "an empty pipe would block", check="file-has-data")
    return 0 if call == "read" else length


def _transfer_counter(call: Literal["read", "write"], length: int) -> int:
    if length < 8 or (call == "write" and length != 8):
        raise KvmError(errno.EINVAL, f"{length=}, an eventfd takes 8 bytes", check="length-of-counter")
    if call == "read":
        raise KvmError(errno.EAGAIN, "a counter of 0 would block", check="file-has-data")
    return 8


def transfer_at(file: OpenFile | None, call: Literal["pread", "pwrite"], length: int, offset: int) -> int:
    """pread(2) and pwrite(2): a negative offset is EINVAL before the descriptor is looked at."""
    if offset < 0:
        raise KvmError(errno.EINVAL, f"{offset=:#x}", check="offset-not-negative")
    if file is None:
        raise KvmError(errno.EBADF, check="fd-open")
    if file.kind.positioned_errno:
        raise KvmError(file.kind.positioned_errno, file.kind.name, check="file-has-positions")
    if isinstance(file, MemFd):
        return file.transfer_at(call, length, offset)
    return 0 if call == "pread" else length


def fsync(file: OpenFile) -> None:
    """fsync(2): EINVAL for files without the operation, a guest_memfd among them."""
    if file.kind.fsync_errno:
        raise KvmError(file.kind.fsync_errno, file.kind.name, check="file-has-fsync")
