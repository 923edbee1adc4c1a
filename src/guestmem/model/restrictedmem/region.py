"""The region ioctl of restrictedmem: its checks in order, where they are not those of later kernels.

Source: v10 9/9 "KVM: Enable and expose KVM_MEM_PRIVATE" and the trees that carry upm and v11c. The ioctl has
restricted_fd and restricted_offset where later ones have guest_memfd and its offset.
"""

from __future__ import annotations

import errno
from functools import cache

from guestmem.model.checks import Check
from guestmem.model.region_checks import (
    ARGUMENT_CHECKS,
    CREATE_CHECKS,
    MAP_CHECKS,
    PLACE_CHECKS,
    RegionRequest,
    rule_check,
    say_old,
    say_slot,
)
from guestmem.model.restrictedmem.file import RestrictedMem
from guestmem.model.restrictedmem.revision import Revision
from guestmem.rules import Binding, Rule
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_PRIVATE, KVM_MEM_READONLY
from guestmem.units import S64_MAX

__all__ = ("MODIFY_CHECKS", "argument_checks", "file_of", "new_slot_checks")

_SOURCE = "__kvm_set_memory_region, v10 9/9"
_BIND = "restrictedmem_bind"


def file_of(request: RegionRequest) -> RestrictedMem:
    """The file, once the checks have found it to be one."""
    assert isinstance(request.file, RestrictedMem)
    return request.file


def _revision(request: RegionRequest) -> Revision:
    assert request.vm.profile.revision is not None
    return request.vm.profile.revision


def _valid_flags(request: RegionRequest) -> int:
    valid = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
    if request.vm.has_private_mem:
        valid |= KVM_MEM_PRIVATE
    if request.region.flags & KVM_MEM_PRIVATE and not _revision(request).private_with_log_dirty:
        valid &= ~KVM_MEM_LOG_DIRTY_PAGES
    return valid


def _same_but_gpa_and_flags(request: RegionRequest) -> bool:
    region, old = request.region, request.old
    assert old is not None
    return (
        region.userspace_addr == old.userspace_addr
        and request.npages == old.npages
        and not (region.flags ^ old.flags) & KVM_MEM_READONLY
    )


def _bound_by_other(request: RegionRequest) -> bool:
    first = request.region.offset >> request.vm.page_shift
    return file_of(request).bound_in(first, first + request.npages) is not None


def _say_range(request: RegionRequest) -> str:
    region = request.region
    where = f"file range [{region.offset:#x}, {region.offset + region.size:#x})"
    first = region.offset >> request.vm.page_shift
    other = file_of(request).bound_in(first, first + request.npages)
    if other is None:
        return f"{where} is free"
    kept = ", kept with the page after its end" if _revision(request).inclusive_end else ""
    return f"{where} meets that of {say_slot(request, other.slot)}{kept}"


def _say_file(request: RegionRequest) -> str:
    file, fd = request.file, request.region.fd
    return f"restricted_fd={fd} is {'no file' if file is None else file.kind.name}"


FLAGS_VALID: Check[RegionRequest] = Check(
    "flags-valid",
    errno.EINVAL,
    "flags must be valid for the VM; after v10 PRIVATE excludes LOG_DIRTY_PAGES",
    "check_memory_region_flags",
    lambda r: not r.region.flags & ~_valid_flags(r),
    lambda r: f"flags={r.region.flags:#x} valid={_valid_flags(r):#x} vm type {r.vm.type}",
)

MODIFY_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "private-immutable",
        errno.EINVAL,
        "a slot cannot be changed by a request with PRIVATE, not even to what it is",
        _SOURCE,
        lambda r: not r.region.wants_gmem,
        lambda r: f"slot {r.region.as_id}:{r.region.id} is {say_old(r)}",
        "delete the slot (size 0), then create it",
    ),
    Check(
        "only-gpa-and-flags-change",
        errno.EINVAL,
        "userspace_addr, size and READONLY of a slot must not change; whether it was PRIVATE is not looked at",
        _SOURCE,
        _same_but_gpa_and_flags,
        lambda r: (
            f"userspace_addr={r.region.userspace_addr:#x} size={r.region.size:#x} flags={r.region.flags:#x}, "
            f"but slot {r.region.as_id}:{r.region.id} is {say_old(r)}"
        ),
        "delete the slot (size 0), then create it",
    ),
)

FILE_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "offset-is-signed",
        errno.EINVAL,
        "restricted_offset must be below 2**63, but for v10",
        "kvm_restrictedmem_bind",
        lambda r: r.region.offset <= S64_MAX or _revision(r).extended_v1,
        lambda r: f"restricted_offset={r.region.offset:#x}",
    ),
    Check(
        "fd-is-restrictedmem",
        errno.EINVAL,
        "restricted_fd must be an open memfd_restricted file",
        "kvm_restrictedmem_bind",
        lambda r: isinstance(r.file, RestrictedMem),
        _say_file,
        "after v10 only KVM_SET_USER_MEMORY_REGION2 has the field",
    ),
)

FREE_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "range-free",
        errno.EINVAL,
        "after v10 no slot of any VM may have any of the range",
        _BIND,
        lambda r: not _revision(r).exclusive or not _bound_by_other(r),
        _say_range,
    ),
)


def _early_binding(request: RegionRequest) -> Binding:
    region, geometry = request.region, request.vm.geometry
    base = geometry.base_page_size
    return Binding(region.gpa, region.size, region.offset, base, base, geometry, region.userspace_addr)


def _binding(request: RegionRequest) -> Binding:
    region = request.region
    return file_of(request).binding(region.gpa, region.size, region.offset, region.userspace_addr)


@cache
def argument_checks(revision: Revision, rule: Rule) -> tuple[Check[RegionRequest], ...]:
    """What is asked of every request."""
    checks = []
    for check in ARGUMENT_CHECKS:
        if check.name not in ("v1-flags", "flags-valid"):
            checks.append(check)
        if check.name == "slot-id":
            checks.append(FLAGS_VALID)
        if check.name == "offset-page-aligned" and revision.early_rule:
            checks.append(rule_check(rule, _early_binding, "restricted_offset", only_private=True))
    return tuple(checks)


@cache
def _private_slot_checks(revision: Revision, rule: Rule) -> tuple[Check[RegionRequest], ...]:
    late = () if revision.early_rule else (rule_check(rule, _binding, "restricted_offset"),)
    return (*CREATE_CHECKS, *PLACE_CHECKS, *FILE_CHECKS, *late, *FREE_CHECKS, *MAP_CHECKS)


def new_slot_checks(request: RegionRequest) -> tuple[Check[RegionRequest], ...]:
    """The checks of a slot that does not exist yet, after those of the arguments."""
    if not request.region.wants_gmem:
        return (*CREATE_CHECKS, *PLACE_CHECKS, *MAP_CHECKS)
    return _private_slot_checks(_revision(request), request.vm.rule)
