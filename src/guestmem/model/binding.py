"""kvm_gmem_bind: give a range of a guest_memfd to a new memslot, and the alignment rule that decides about it.

The rule is the last word before the range is given: released kernels have none, profile ``next`` checks the one the VM
was opened with. Whatever the rule lets through, no folio is ever mapped outside the bound range (``levels``).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from guestmem.model.checks import Check
from guestmem.model.gmem import GuestMemfd
from guestmem.model.memslots import Memslot
from guestmem.model.profiles import Profile
from guestmem.rules import Binding, Rule
from guestmem.units import to_s64

if TYPE_CHECKING:
    from guestmem.model.region import RegionRequest

__all__ = ("bind", "binding_of", "checks")

_SOURCE = "kvm_gmem_bind"


def checks(profile: Profile, rule: Rule) -> tuple[Check[RegionRequest], ...]:
    """The checks of a profile, in order; they leave the file they found in ``request.file``."""
    always: tuple[Check[RegionRequest], ...] = (
        Check("fd-open", errno.EBADF, "guest_memfd must be an open descriptor", _SOURCE, _fd_open, _values_fd),
        Check(
            "fd-is-guest-memfd", errno.EINVAL, "the descriptor must be a guest_memfd", _SOURCE, _fd_is_gmem, _values_fd
        ),
        Check(
            "same-vm",
            errno.EINVAL,
            "a guest_memfd can be bound only in the VM that created it",
            _SOURCE,
            lambda r: _gmem(r).vm is r.vm,
            _values_fd,
            "create the file with the VM that binds it",
        ),
        Check(
            "binding-in-file",
            errno.EINVAL,
            "offset + size must be within the file",
            _SOURCE,
            _in_file_signed if profile.signed_binding_offset else _in_file,
            lambda r: f"guest_memfd_offset={r.offset:#x} size={r.size:#x} file size {_gmem(r).size:#x}",
            "create a larger file: holes cost nothing",
        ),
        Check(
            "binding-free",
            profile.binding_overlap_errno,
            "no other slot may own any of the range",
            _SOURCE,
            lambda r: (
                not _gmem(r).bindings.overlaps(r.offset >> r.vm.page_shift, (r.offset + r.size) >> r.vm.page_shift)
            ),
            lambda r: f"file range [{r.offset:#x}, {r.offset + r.size:#x}) bound: {_gmem(r).bindings!r}",
        ),
    )
    if not profile.huge:
        return always
    return (
        *always,
        Check(
            f"rule:{rule.name}",
            errno.EINVAL,
            rule.statement,
            "the alignment rule the VM was opened with",
            lambda r: rule.refuses(_requested(r)) is None,
            lambda r: rule.refuses(_requested(r)) or f"offset={r.offset:#x} size={r.size:#x} gpa={r.gpa:#x}",
            lambda r: _move_offset(rule, _requested(r)),
        ),
    )


def bind(request: RegionRequest, slot: Memslot) -> None:
    """Bind the range of a checked request to its new slot."""
    _gmem(request).bind(slot, request.offset >> request.vm.page_shift)


def binding_of(slot: Memslot, gmem: GuestMemfd) -> Binding:
    """What a rule may know of a bound slot."""
    shift = gmem.vm.page_shift
    return _binding(gmem, slot.base_gfn << shift, slot.npages << shift, slot.pgoff << shift)


def _requested(request: RegionRequest) -> Binding:
    return _binding(_gmem(request), request.gpa, request.size, request.offset)


def _binding(gmem: GuestMemfd, gpa: int, size: int, offset: int) -> Binding:
    geometry = gmem.vm.geometry
    return Binding(
        gpa=gpa,
        size=size,
        offset=offset,
        page_size=gmem.page_size,
        backing_page_size=geometry.page_size(gmem.cache.largest_order),
        geometry=geometry,
    )


def _move_offset(rule: Rule, binding: Binding) -> str:
    offset = rule.nearest_offset(binding)
    if offset is None:
        return "no offset near by is accepted; change the slot's size or gpa"
    return f"use guest_memfd_offset={offset:#x}: holes in the file cost nothing"


def _fd_open(request: RegionRequest) -> bool:
    request.file = request.resolve(request.fd)
    return request.file is not None


def _fd_is_gmem(request: RegionRequest) -> bool:
    return isinstance(request.file, GuestMemfd)


def _gmem(request: RegionRequest) -> GuestMemfd:
    assert isinstance(request.file, GuestMemfd)
    return request.file


def _in_file(request: RegionRequest) -> bool:
    return request.offset + request.size <= _gmem(request).size


def _in_file_signed(request: RegionRequest) -> bool:
    # "KVM: guest_memfd: Use unsigned offsets": before it, a sum that reaches 2**63 is negative, hence small enough.
    offset = to_s64(request.offset)
    return offset >= 0 and to_s64(request.offset + request.size) <= _gmem(request).size


def _values_fd(request: RegionRequest) -> str:
    return f"guest_memfd={request.fd} is {'not open' if request.file is None else request.file.kind.name}"
