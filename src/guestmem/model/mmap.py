"""mmap(2), munmap(2) and mprotect(2): checks in the kernel's order (mm/mmap.c, mm/mprotect.c), and what they do."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace

from guestmem.model.checks import Check, require
from guestmem.model.files import ANONYMOUS, OpenFile
from guestmem.model.hostmem import AddressSpace, RangeRequest, Vma
from guestmem.model.profiles import Profile
from guestmem.model.vm import GuestMemfd
from guestmem.uapi import (
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_TYPE,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)
from guestmem.units import S64_MAX, U64, U64_MAX, align_up

__all__ = ("OFFSET_CHECKS", "MmapRequest", "mmap", "mprotect", "munmap")

_LEGACY_MAP_MASK = 0x7C07F9F3  # flags that MAP_SHARED_VALIDATE knows without the file's help; not MAP_SYNC
_PROT_SEM = 8  # atomic operations; means nothing on x86
_PROT_GROWSDOWN, _PROT_GROWSUP = 0x01000000, 0x02000000
_GROWS = _PROT_GROWSDOWN | _PROT_GROWSUP
_PROTECTIONS = PROT_READ | PROT_WRITE | PROT_EXEC | _PROT_SEM  # arch_validate_prot


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
        return self.flags & MAP_TYPE

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


OFFSET_CHECKS: tuple[Check[tuple[int, int]], ...] = (
    Check(
        "offset-page-aligned",
        errno.EINVAL,
        "the offset must be a multiple of the page size",
        "x86 mmap",
        lambda asked: not asked[0] % asked[1],
        lambda asked: f"offset={asked[0]:#x} page={asked[1]:#x}",
    ),
)
"""Of an offset and a page size: asked before the descriptor is looked at."""

FIRST_CHECKS: tuple[Check[MmapRequest], ...] = (
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

ANONYMOUS_CHECKS: tuple[Check[MmapRequest], ...] = (
    Check(
        "map-type",
        errno.EINVAL,
        "anonymous memory must be shared or private, and is not validated",
        "do_mmap",
        lambda r: r.map_type in (MAP_SHARED, MAP_PRIVATE),
        lambda r: f"flags={r.flags:#x}",
    ),
)

FILE_CHECKS: tuple[Check[MmapRequest], ...] = (
    Check(
        "offset-representable",
        errno.EOVERFLOW,
        "the end of the mapping must be a valid file offset",
        "file_mmap_ok",
        # The offset is taken as unsigned; other than regular files may have offsets up to 2**64.
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


def mmap(host: AddressSpace, request: MmapRequest) -> int:
    """Map at an address of the model's choice; that address."""
    require(FIRST_CHECKS, request)
    host.find_hole(request.size, host.page_size)
    file, prot = request.file, request.prot
    if file.kind is ANONYMOUS:
        require(ANONYMOUS_CHECKS, request)
        return host.map_anonymous(request.length, prot, host.page_size, shared=request.shared)
    require(FILE_CHECKS, request)
    may_exec = not request.noexec
    return host.map_file(file, request.length, prot, request.offset, shared=request.shared, may_exec=may_exec)


# -- munmap and mprotect ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProtectRequest(RangeRequest):
    """mprotect(2)."""

    prot: int

    @property
    def meets_a_mapping(self) -> bool:
        """Whether something is mapped where a mapping that grows would have to be."""
        end = self.end if self.prot & _PROT_GROWSDOWN else self.addr + 1
        return self.host.vmas.overlaps(self.addr, end)


MUNMAP_CHECKS: tuple[Check[RangeRequest], ...] = (
    Check(
        "range-aligned",
        errno.EINVAL,
        "the address must be page aligned and the length not 0",
        "do_vmi_munmap",
        lambda r: not r.addr % r.host.page_size and r.length != 0,
        str,
    ),
    Check(
        "range-in-user-space",
        errno.EINVAL,
        "the range must end in user space",
        "do_vmi_munmap",
        lambda r: r.addr + r.length <= r.host.user_limit,
        str,
    ),
)

MPROTECT_ADDRESS_CHECKS: tuple[Check[ProtectRequest], ...] = (
    Check(
        "range-aligned",
        errno.EINVAL,
        "the address must be page aligned, and the mapping cannot grow both up and down",
        "do_mprotect_pkey",
        lambda r: not r.addr % r.host.page_size and r.prot & _GROWS != _GROWS,
        lambda r: f"{r} prot={r.prot:#x}",
    ),
)

MPROTECT_CHECKS: tuple[Check[ProtectRequest], ...] = (
    Check(
        "range-no-wrap",
        errno.ENOMEM,
        "the range must not wrap 64 bits",
        "do_mprotect_pkey",
        lambda r: r.end < U64,
        str,
    ),
    Check(
        "protection-known",
        errno.EINVAL,
        "the protection must be one that there is",
        "do_mprotect_pkey",
        lambda r: not r.prot & ~_PROTECTIONS & ~_GROWS,
        lambda r: f"prot={r.prot:#x}",
    ),
    Check(
        "mapping-grows",
        errno.EINVAL,
        "PROT_GROWSDOWN and PROT_GROWSUP need a mapping that grows, and none does here",
        "do_mprotect_pkey",
        lambda r: not r.prot & _GROWS or not r.meets_a_mapping,
        lambda r: f"prot={r.prot:#x}",
    ),
)

MAY_EXEC: Check[tuple[Vma, int]] = Check(
    "mapping-may-exec",
    errno.EACCES,
    "PROT_EXEC is refused on a mapping of a noexec mount",
    "do_mprotect_pkey",
    lambda asked: not asked[1] & PROT_EXEC or asked[0].may_exec,
    lambda asked: f"prot={asked[1]:#x}",
)

RANGE_MAPPED: Check[tuple[int, int]] = Check(
    "range-mapped",
    errno.ENOMEM,
    "the whole range must be mapped; what comes before the first hole has changed",
    "do_mprotect_pkey",
    lambda asked: asked[0] >= asked[1],
    lambda asked: f"mapped up to {asked[0]:#x}, asked up to {asked[1]:#x}",
)


def munmap(host: AddressSpace, addr: int, length: int) -> None:
    """Remove the mappings of a range; EINVAL if it is empty, unaligned or leaves user space (do_vmi_munmap)."""
    request = RangeRequest(host, addr, length)
    require(MUNMAP_CHECKS, request)
    host.unmap(addr, request.end)


def mprotect(host: AddressSpace, addr: int, length: int, prot: int) -> None:
    """Change protections up to the first hole (ENOMEM) or forbidden mapping (EACCES) (do_mprotect_pkey).

    Before anything changes: EINVAL unaligned, ENOMEM wrapping, EINVAL for an unknown protection; length 0 succeeds.
    """
    request = ProtectRequest(host, addr, length, prot)
    require(MPROTECT_ADDRESS_CHECKS, request)
    if length == 0:
        return
    require(MPROTECT_CHECKS, request)
    prot &= PROT_READ | PROT_WRITE | PROT_EXEC
    done = addr
    for start, stop, vma in list(host.vmas.runs(addr, request.end)):
        if start != done:
            break
        require((MAY_EXEC,), (vma, prot))
        if prot != vma.prot:
            host.cut(start)
            host.cut(stop)
            host.invalidate(start, stop)
            host.vmas.set(start, stop, replace(vma, prot=prot))
        done = stop
    require((RANGE_MAPPED,), (done, request.end))
