"""fallocate(2): the checks of the generic layer (vfs_fallocate), then those of the file, then what it does."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from guestmem.model.auxiliary import MemFd
from guestmem.model.checks import Check, require
from guestmem.model.files import OpenFile
from guestmem.model.profiles import Profile
from guestmem.model.restrictedmem import calls as restrictedmem
from guestmem.model.restrictedmem.file import RestrictedMem
from guestmem.model.vm import GuestMemfd
from guestmem.uapi import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_WRITE_ZEROES,
    FALLOC_FL_ZERO_RANGE,
)
from guestmem.units import S64_MAX, format_size

__all__ = ("FallocateRequest", "fallocate")


@dataclass(frozen=True, slots=True)
class FallocateRequest:
    """The call; offset and length are signed bytes."""

    profile: Profile
    file: OpenFile
    mode: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.offset + self.length

    @property
    def allocates(self) -> bool:
        """It does not punch a hole."""
        return not self.mode & FALLOC_FL_PUNCH_HOLE

    @property
    def unit(self) -> int:
        """What a range in the file must be a multiple of, bytes."""
        return self.gmem.page_size if self.gmem.cache.backing == "hugetlb" else self.gmem.vm.page_size

    @property
    def held(self) -> int | None:
        """The first page of the range that somebody holds besides the file."""
        shift = self.gmem.vm.page_shift
        return self.gmem.cache.first_held(self.offset >> shift, self.end >> shift)

    @property
    def gmem(self) -> GuestMemfd:
        """The file, where it is a guest_memfd."""
        assert isinstance(self.file, GuestMemfd)
        return self.file


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


def _combines_as_6_1(request: FallocateRequest) -> bool:
    """Linux 6.1 has known modes that do not go together, other than PUNCH_HOLE's own, as EINVAL."""
    mode = request.mode
    if request.profile.revision is None or mode < 0 or mode & ~request.profile.fallocate_modes:
        return False
    punches, keeps = mode & FALLOC_FL_PUNCH_HOLE, mode & FALLOC_FL_KEEP_SIZE
    return not punches or bool(keeps and not mode & FALLOC_FL_ZERO_RANGE)


GENERIC_CHECKS: tuple[Check[FallocateRequest], ...] = (
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
        lambda r: errno.EINVAL if _combines_as_6_1(r) else errno.EOPNOTSUPP,
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
        lambda r: r.end <= S64_MAX,
        lambda r: f"offset={r.offset:#x} len={r.length:#x}",
    ),
    Check(
        "file-has-fallocate",
        errno.EOPNOTSUPP,
        "the file must have a fallocate operation",
        "vfs_fallocate",
        lambda r: isinstance(r.file, GuestMemfd | MemFd | RestrictedMem),
        lambda r: r.file.kind.name,
    ),
)

GUEST_MEMFD_CHECKS: tuple[Check[FallocateRequest], ...] = (
    Check(
        "mode-supported",
        errno.EOPNOTSUPP,
        "only KEEP_SIZE (allocate) and KEEP_SIZE | PUNCH_HOLE are supported",
        "kvm_gmem_fallocate",
        lambda r: r.mode in (FALLOC_FL_KEEP_SIZE, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE),
        lambda r: f"mode={r.mode:#x}",
        "the size of a guest_memfd never changes: pass FALLOC_FL_KEEP_SIZE",
    ),
    Check(
        "range-page-aligned",
        errno.EINVAL,
        "offset and length must be multiples of the page size, for a file of hugetlb pages of theirs",
        "kvm_gmem_fallocate",
        lambda r: not (r.offset | r.length) & (r.unit - 1),
        lambda r: f"offset={r.offset:#x} len={r.length:#x} page={r.unit:#x}",
    ),
    Check(
        "range-in-file",
        errno.EINVAL,
        "an allocation must lie inside the file; a hole need not",
        "kvm_gmem_allocate",
        lambda r: not r.allocates or r.end <= r.gmem.size,
        lambda r: f"offset={r.offset:#x} len={r.length:#x} file size {r.gmem.size:#x} ({format_size(r.gmem.size)})",
    ),
    Check(
        "no-page-held",
        errno.EAGAIN,
        "nothing but the file may hold a page that goes back to the host's pool",
        "HugeTLB work in progress, 07fb82367304",
        lambda r: r.allocates or r.gmem.cache.backing != "hugetlb" or r.held is None,
        lambda r: f"file index {r.held}",
        "let the device or pipe drop the page, and try again",
    ),
)

MEMFD_CHECKS: tuple[Check[FallocateRequest], ...] = (
    Check(
        "mode-supported",
        errno.EOPNOTSUPP,
        "only KEEP_SIZE and PUNCH_HOLE are supported",
        "shmem_fallocate",
        lambda r: not r.mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE),
        lambda r: f"mode={r.mode:#x}",
    ),
)


def fallocate(request: FallocateRequest) -> None:
    """Check the call, then allocate or punch the range; ENOMEM may leave a part allocated."""
    require(GENERIC_CHECKS, request)
    file = request.file
    if isinstance(file, MemFd):
        require(MEMFD_CHECKS, request)
        file.fallocate(request.mode, request.offset, request.length)
        return
    if isinstance(file, RestrictedMem):
        restrictedmem.fallocate(file, request.mode, request.offset, request.length)
        return
    require(GUEST_MEMFD_CHECKS, request)
    gmem, shift = request.gmem, request.gmem.vm.page_shift
    if request.allocates:
        gmem.populate(request.offset >> shift, request.end >> shift)
    else:
        gmem.punch_hole(request.offset >> shift, request.end >> shift)
