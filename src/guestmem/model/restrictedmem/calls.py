"""memfd_restricted(2), and ftruncate(2) and fallocate(2) on such a file.

Source: v10 1/9 "mm: Introduce memfd_restricted system call to create restricted user memory",
20221202061347.1070246-2-chao.p.peng@linux.intel.com; the inner file is shmem's of Linux 6.1.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from guestmem.model.checks import Check, require
from guestmem.model.restrictedmem.file import RestrictedMem
from guestmem.model.restrictedmem.revision import Revision
from guestmem.model.restrictedmem.shmem import Shmem
from guestmem.uapi import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    RMFD_HUGE_MASK,
    RMFD_HUGE_SHIFT,
)
from guestmem.units import align_down, align_up

__all__ = ("MEMFD_RESTRICTED_CHECKS", "CreationRequest", "fallocate", "ftruncate", "memfd_restricted")

_SIZE_FIELD = RMFD_HUGE_MASK << RMFD_HUGE_SHIFT


@dataclass(frozen=True, slots=True)
class CreationRequest:
    """memfd_restricted's argument, and the kernel that is asked: None where the call does not exist."""

    revision: Revision | None
    shmem: Shmem
    flags: int

    @property
    def page_size(self) -> int:
        """The page size asked for, bytes; that of a base page where none is."""
        logarithm = self.flags >> RMFD_HUGE_SHIFT & RMFD_HUGE_MASK
        return 1 << logarithm if logarithm else self.shmem.geometry.base_page_size

    @property
    def valid_flags(self) -> int:
        """No released form has flags; the page size is ours."""
        return _SIZE_FIELD if self.revision is not None and self.revision.creation_flags else 0


MEMFD_RESTRICTED_CHECKS: tuple[Check[CreationRequest], ...] = (
    Check(
        "kernel-has-memfd-restricted",
        errno.ENOSYS,
        "the kernel must have memfd_restricted, which was never merged",
        "v10 1/9",
        lambda r: r.revision is not None,
        lambda r: "system call 451 of the patches; today that is cachestat",
        "use KVM_CREATE_GUEST_MEMFD, or profile restrictedmem",
    ),
    Check(
        "flags-supported",
        errno.EINVAL,
        "flags must be 0; those that the last mail asks for are a page size as its logarithm in bits 26 to 31",
        "v10 1/9; ours",
        lambda r: not r.flags & ~r.valid_flags,
        lambda r: f"flags={r.flags:#x} valid={r.valid_flags:#x}",
    ),
    Check(
        "page-size-known",
        errno.EINVAL,
        "the page size must be a leaf size of the host",
        "ours",
        lambda r: r.page_size in r.shmem.geometry.page_sizes,
        lambda r: f"page size {r.page_size:#x}, geometry {r.shmem.geometry.name}",
    ),
)


def memfd_restricted(request: CreationRequest) -> RestrictedMem:
    """A new file without a size; ENOSYS, EINVAL."""
    require(MEMFD_RESTRICTED_CHECKS, request)
    assert request.revision is not None
    geometry = request.shmem.geometry
    return RestrictedMem(request.shmem, request.revision, geometry.order_of(request.page_size))


_Resize = tuple[RestrictedMem, int]

FTRUNCATE_CHECKS: tuple[Check[_Resize], ...] = (
    Check(
        "size-not-set",
        errno.EPERM,
        "the size can be set once, while it is 0",
        "restrictedmem_setattr",
        lambda asked: not asked[0].size,
        lambda asked: f"size {asked[0].size:#x}, length={asked[1]:#x}",
        "fallocate with mode 0 past the end makes it larger",
    ),
    Check(
        "size-page-aligned",
        errno.EINVAL,
        "the length must be a multiple of the page size",
        "restrictedmem_setattr",
        lambda asked: asked[1] % asked[0].shmem.geometry.base_page_size == 0,
        lambda asked: f"length={asked[1]:#x} page={asked[0].shmem.geometry.base_page_size:#x}",
    ),
)


def ftruncate(file: RestrictedMem, length: int) -> None:
    """Set the size (bytes), which reserves nothing; EPERM, EINVAL."""
    require(FTRUNCATE_CHECKS, (file, length))
    file.size = length


@dataclass(frozen=True, slots=True)
class _Fallocate:
    file: RestrictedMem
    mode: int
    offset: int
    length: int

    @property
    def page(self) -> int:
        return self.file.shmem.geometry.base_page_size

    @property
    def punches(self) -> bool:
        return bool(self.mode & FALLOC_FL_PUNCH_HOLE)


FALLOCATE_CHECKS: tuple[Check[_Fallocate], ...] = (
    Check(
        "range-page-aligned",
        errno.EINVAL,
        "offset and length of a hole must be multiples of the page size",
        "restrictedmem_punch_hole",
        lambda r: not r.punches or not (r.offset | r.length) % r.page,
        lambda r: f"offset={r.offset:#x} len={r.length:#x} page={r.page:#x}",
    ),
    Check(
        "mode-supported",
        errno.EOPNOTSUPP,
        "shmem knows KEEP_SIZE and PUNCH_HOLE only",
        "shmem_fallocate",
        lambda r: not r.mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE),
        lambda r: f"mode={r.mode:#x}",
    ),
)


def fallocate(file: RestrictedMem, mode: int, offset: int, length: int) -> None:
    """Punch a hole, of which observers hear, or allocate, of which nobody does; bytes. EINVAL, EOPNOTSUPP, ENOMEM.

    Mode 0 past the end makes the file larger, page aligned or not: the size is not set once and for all.
    """
    request = _Fallocate(file, mode, offset, length)
    require(FALLOCATE_CHECKS, request)
    page, end = request.page, offset + length
    if request.punches:
        file.punch_hole(offset // page, end // page)
        return
    file.populate(align_down(offset, page) // page, align_up(end, page) // page)
    if not mode & FALLOC_FL_KEEP_SIZE:
        file.size = max(file.size, end)
