"""The checks of KVM_SET_USER_MEMORY_REGION and _REGION2, the binding's included, in the kernel's order.

They are in groups (kvm_vm_ioctl_set_memory_region, kvm_set_memory_region, kvm_gmem_bind,
kvm_arch_prepare_memory_region), because the kernel branches between them. They look at a request and at the part of a
VM and of a file that ``VmSlots`` and ``BindableFile`` hold, and at nothing else: the ioctl, the refusals of a layout
and the proofs run the same ones.

The alignment rule is the last word before a range is given: released kernels have none, profile ``next`` checks the
one the VM was opened with. Whatever it lets through, no folio is ever mapped outside the bound range (``levels``).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from guestmem.model.checks import Check
from guestmem.model.files import OpenFile
from guestmem.model.vm import BindableFile, Memslot, VmSlots
from guestmem.rules import Binding, Rule
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import U64, to_s64

__all__ = (
    "ARGUMENT_CHECKS",
    "CREATE_CHECKS",
    "DELETE_CHECKS",
    "FILE_CHECKS",
    "FREE_CHECKS",
    "MAP_CHECKS",
    "MODIFY_CHECKS",
    "PLACE_CHECKS",
    "Region",
    "RegionRequest",
    "new_slot_checks",
    "rule_check",
    "say_old",
    "say_slot",
)

USER_SLOTS = 32764  # KVM_USER_MEM_SLOTS: 32767 less three internal ones
ALL_SLOTS = 32767  # KVM_MEM_SLOTS_NUM
MAX_SLOT_PAGES = (1 << 31) - 1  # KVM_MEM_MAX_NR_PAGES
_SOURCE = "kvm_set_memory_region"
_BIND = "kvm_gmem_bind"
_V1_FLAGS = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY


class Region(NamedTuple):
    """The ioctl's argument; gpa, size, userspace_addr and offset are bytes. The last two are read by version 2 only."""

    version: int  # 1 or 2
    slot: int  # the address space in the high half, the id in the low half
    flags: int
    gpa: int
    size: int
    userspace_addr: int
    fd: int = -1
    offset: int = 0

    @property
    def as_id(self) -> int:
        """The address space."""
        return self.slot >> 16

    @property
    def id(self) -> int:
        """The slot id."""
        return self.slot & 0xFFFF

    @property
    def wants_gmem(self) -> bool:
        """The GUEST_MEMFD flag is set."""
        return bool(self.flags & KVM_MEM_GUEST_MEMFD)


class RegionRequest:
    """A region asked of a VM; ``file`` is what its descriptor names, ``old`` the slot that has its id."""

    __slots__ = ("base_gfn", "file", "npages", "old", "region", "vm")

    def __init__(self, vm: VmSlots, region: Region, file: OpenFile | None) -> None:
        self.vm = vm
        self.region = region
        self.file = file
        self.old: Memslot | None = None
        self.base_gfn = region.gpa >> vm.page_shift  # the first frame asked for
        self.npages = region.size >> vm.page_shift

    def slot(self) -> Memslot:
        """The slot that a checked request makes."""
        region = self.region
        return Memslot(region.as_id, region.id, self.base_gfn, self.npages, region.flags, region.userspace_addr)

    @property
    def gmem(self) -> BindableFile:
        """The file, once the checks have found it to be a guest_memfd."""
        file = self.file
        assert isinstance(file, BindableFile)
        return file


# -- what the checks compute -----------------------------------------------------------------------------------------


def _valid_flags(request: RegionRequest) -> int:
    """Flags that may be set together on this VM (check_memory_region_flags)."""
    vm = request.vm
    valid = KVM_MEM_GUEST_MEMFD if vm.has_private_mem or vm.profile.gmem_on_any_vm else 0
    return valid if request.region.flags & KVM_MEM_GUEST_MEMFD else valid | _V1_FLAGS


def _hva_in_user_space(request: RegionRequest) -> bool:
    vm, start = request.vm, request.region.userspace_addr
    return not start & (vm.page_size - 1) and start + request.region.size <= vm.machine.user_limit


def _offset_fits(request: RegionRequest) -> bool:
    region = request.region
    if not region.flags & KVM_MEM_GUEST_MEMFD:
        return True
    return not region.offset & (request.vm.page_size - 1) and region.offset + region.size < U64


def _overlap(request: RegionRequest) -> Memslot | None:
    first = request.base_gfn
    return request.vm.spaces[request.region.slot >> 16].overlapping(first, first + request.npages, request.old)


def _say_overlap(request: RegionRequest) -> str:
    other, region = _overlap(request), request.region
    where = f"gpa [{region.gpa:#x}, {region.gpa + region.size:#x})"
    return f"{where} is free" if other is None else f"{where} overlaps {say_slot(request, other)}"


def say_slot(request: RegionRequest, slot: Memslot) -> str:
    """A slot by its guest-physical range."""
    shift = request.vm.page_shift
    return f"the slot at gpa [{slot.base_gfn << shift:#x}, {slot.end_gfn << shift:#x})"


def say_old(request: RegionRequest) -> str:
    """The slot that the request would change."""
    old = request.old
    assert old is not None
    return f"{say_slot(request, old)} with userspace_addr={old.userspace_addr:#x} flags={old.flags:#x}"


def _same_but_gpa_and_log(request: RegionRequest) -> bool:
    region, old = request.region, request.old
    assert old is not None
    return (
        region.userspace_addr == old.userspace_addr
        and request.npages == old.npages
        and not (region.flags ^ old.flags) & (KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD)
    )


def _in_file(request: RegionRequest) -> bool:
    offset = request.region.offset
    end = offset + request.region.size
    if request.vm.profile.signed_binding_offset:
        # "KVM: guest_memfd: Use unsigned offsets": before it, a sum that reaches 2**63 is negative, hence small enough.
        return to_s64(offset) >= 0 and to_s64(end) <= request.gmem.size
    return end <= request.gmem.size


def _bound(request: RegionRequest) -> tuple[int, int, Memslot] | None:
    """The first part of the file range that another slot has: start, end (base pages) and the slot."""
    shift, offset = request.vm.page_shift, request.region.offset
    return request.gmem.bound_in(offset >> shift, (offset + request.region.size) >> shift)


def _say_bound(request: RegionRequest) -> str:
    taken, shift, region = _bound(request), request.vm.page_shift, request.region
    where = f"file range [{region.offset:#x}, {region.offset + region.size:#x})"
    if taken is None:
        return f"{where} is free"
    start, end, slot = taken
    return f"{where}: [{start << shift:#x}, {end << shift:#x}) belongs to {say_slot(request, slot)}"


def _values_fd(request: RegionRequest) -> str:
    return f"guest_memfd={request.region.fd} is {'not open' if request.file is None else request.file.kind.name}"


def _values_file_range(request: RegionRequest) -> str:
    return f"guest_memfd_offset={request.region.offset:#x} size={request.region.size:#x}"


# -- the checks ------------------------------------------------------------------------------------------------------

ARGUMENT_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "v1-flags",
        errno.EINVAL,
        "KVM_SET_USER_MEMORY_REGION knows only LOG_DIRTY_PAGES and READONLY",
        "kvm_vm_ioctl",
        lambda r: r.region.version != 1 or not r.region.flags & ~_V1_FLAGS,
        lambda r: f"flags={r.region.flags:#x}",
        "use KVM_SET_USER_MEMORY_REGION2 for guest_memfd",
    ),
    Check(
        "slot-id",
        errno.EINVAL,
        f"the slot id must be below {USER_SLOTS}",
        "kvm_vm_ioctl_set_memory_region",
        lambda r: r.region.slot & 0xFFFF < USER_SLOTS,
        lambda r: f"slot={r.region.slot:#x} id={r.region.id}",
    ),
    Check(
        "flags-valid",
        errno.EINVAL,
        "flags must be valid for the VM, and GUEST_MEMFD excludes READONLY and LOG_DIRTY_PAGES",
        "check_memory_region_flags",
        lambda r: not r.region.flags & ~_valid_flags(r),
        lambda r: f"flags={r.region.flags:#x} valid={_valid_flags(r):#x} vm type {r.vm.type}",
    ),
    Check(
        "size-page-aligned",
        errno.EINVAL,
        "memory_size must be a multiple of the page size",
        _SOURCE,
        lambda r: not r.region.size & (r.vm.page_size - 1),
        lambda r: f"memory_size={r.region.size:#x} page={r.vm.page_size:#x}",
    ),
    Check(
        "gpa-page-aligned",
        errno.EINVAL,
        "guest_phys_addr must be a multiple of the page size",
        _SOURCE,
        lambda r: not r.region.gpa & (r.vm.page_size - 1),
        lambda r: f"guest_phys_addr={r.region.gpa:#x} page={r.vm.page_size:#x}",
    ),
    Check(
        "hva-in-user-space",
        errno.EINVAL,
        "userspace_addr must be page aligned, untagged, and end in user space",
        _SOURCE,
        _hva_in_user_space,
        lambda r: (
            f"userspace_addr={r.region.userspace_addr:#x} size={r.region.size:#x} limit={r.vm.machine.user_limit:#x}"
        ),
    ),
    Check(
        "offset-page-aligned",
        errno.EINVAL,
        "guest_memfd_offset must be page aligned and offset + size must not reach 2**64",
        _SOURCE,
        _offset_fits,
        _values_file_range,
    ),
    Check(
        "address-space",
        errno.EINVAL,
        "the address space must exist",
        _SOURCE,
        lambda r: r.region.slot >> 16 < len(r.vm.spaces) and r.region.slot & 0xFFFF < ALL_SLOTS,
        lambda r: f"address space {r.region.as_id} of {len(r.vm.spaces)}",
    ),
    Check(
        "gpa-no-wrap",
        errno.EINVAL,
        "guest_phys_addr + memory_size must not reach 2**64",
        _SOURCE,
        lambda r: r.region.gpa + r.region.size < U64,
        lambda r: f"guest_phys_addr={r.region.gpa:#x} memory_size={r.region.size:#x}",
    ),
    Check(
        "slot-page-count",
        errno.EINVAL,
        f"a slot has at most {MAX_SLOT_PAGES:#x} pages",
        _SOURCE,
        lambda r: r.npages <= MAX_SLOT_PAGES,
        lambda r: f"pages={r.npages:#x}",
        "split the range into several slots",
    ),
)

DELETE_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "slot-exists",
        errno.EINVAL,
        "size 0 deletes, and there must be a slot to delete",
        _SOURCE,
        lambda r: r.old is not None,
        lambda r: f"slot {r.region.as_id}:{r.region.id}",
    ),
)

CREATE_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "total-pages",
        errno.EINVAL,
        "the pages of all slots together must not wrap 64 bits",
        _SOURCE,
        lambda r: r.vm.slot_pages + r.npages < U64,
        lambda r: f"pages={r.npages:#x} others={r.vm.slot_pages:#x}",
    ),
)

MODIFY_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "guest-memfd-immutable",
        errno.EINVAL,
        "a slot cannot be changed by a request with GUEST_MEMFD, not even to what it is",
        _SOURCE,
        lambda r: not r.region.wants_gmem,
        lambda r: f"slot {r.region.as_id}:{r.region.id} is {say_old(r)}",
        "delete the slot (size 0), then create it",
    ),
    Check(
        "only-gpa-and-dirty-log-change",
        errno.EINVAL,
        "of an existing slot only guest_phys_addr and LOG_DIRTY_PAGES may change",
        _SOURCE,
        _same_but_gpa_and_log,
        lambda r: (
            f"userspace_addr={r.region.userspace_addr:#x} size={r.region.size:#x} flags={r.region.flags:#x}, "
            f"but slot {r.region.as_id}:{r.region.id} is {say_old(r)}"
        ),
        "delete the slot (size 0), then create it",
    ),
)

PLACE_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "gpa-free",
        errno.EEXIST,
        "no other slot of the address space may share a guest frame",
        "kvm_check_memslot_overlap",
        lambda r: _overlap(r) is None,
        _say_overlap,
    ),
)

FILE_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "fd-open",
        errno.EBADF,
        "guest_memfd must be an open descriptor",
        _BIND,
        lambda r: r.file is not None,
        _values_fd,
    ),
    Check(
        "fd-is-guest-memfd",
        errno.EINVAL,
        "the descriptor must be a guest_memfd",
        _BIND,
        lambda r: isinstance(r.file, BindableFile),
        _values_fd,
    ),
    Check(
        "same-vm",
        errno.EINVAL,
        "a guest_memfd can be bound only in the VM that created it",
        _BIND,
        lambda r: r.gmem.vm is r.vm,
        _values_fd,
        "create the file with the VM that binds it",
    ),
    Check(
        "binding-in-file",
        errno.EINVAL,
        "offset + size must be within the file",
        _BIND,
        _in_file,
        lambda r: f"{_values_file_range(r)} file size {r.gmem.size:#x}",
        "create a larger file: holes cost nothing",
    ),
)

# kvm_gmem_bind asks it with the others; from 7.3 on kvm_gmem_commit_memory_region does, after MAP_CHECKS.
FREE_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "binding-free",
        lambda r: r.vm.profile.binding_overlap_errno,
        "no other slot may own any of the range",
        "kvm_gmem_bind; kvm_gmem_commit_memory_region in 7.3",
        lambda r: _bound(r) is None,
        _say_bound,
    ),
)

MAP_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "gpa-mappable",
        errno.EINVAL,
        "the last frame must be within what the MMU can map",
        "kvm_arch_prepare_memory_region",
        lambda r: r.region.gpa + r.region.size <= 1 << r.vm.machine.gpa_bits,
        lambda r: f"gpa [{r.region.gpa:#x}, {r.region.gpa + r.region.size:#x}) limit {1 << r.vm.machine.gpa_bits:#x}",
    ),
)


NEW_SLOT_CHECKS = (*CREATE_CHECKS, *PLACE_CHECKS, *MAP_CHECKS)


def new_slot_checks(request: RegionRequest) -> tuple[Check[RegionRequest], ...]:
    """The checks of a slot that does not exist yet, after those of the arguments."""
    if not request.region.flags & KVM_MEM_GUEST_MEMFD:
        return NEW_SLOT_CHECKS
    profile = request.vm.profile
    return _new_binding_checks(request.vm.rule if profile.huge else None, overlap_last=profile.binding_overlap_last)


def _binding(request: RegionRequest) -> Binding:
    region = request.region
    return request.gmem.binding(region.gpa, region.size, region.offset, region.userspace_addr)


@cache
def _new_binding_checks(rule: Rule | None, *, overlap_last: bool) -> tuple[Check[RegionRequest], ...]:
    by_rule = () if rule is None else (rule_check(rule, _binding, "guest_memfd_offset"),)
    if overlap_last:
        return (*CREATE_CHECKS, *PLACE_CHECKS, *FILE_CHECKS, *MAP_CHECKS, *FREE_CHECKS, *by_rule)
    return (*CREATE_CHECKS, *PLACE_CHECKS, *FILE_CHECKS, *FREE_CHECKS, *by_rule, *MAP_CHECKS)


def rule_check(
    rule: Rule, binding: Callable[[RegionRequest], Binding], field: str, *, only_private: bool = False
) -> Check[RegionRequest]:
    """The alignment rule of the VM, as a check; field is what the offset is called. No released kernel has it."""

    def refused(request: RegionRequest) -> str | None:
        return None if only_private and not request.region.wants_gmem else rule.refuses(binding(request))

    return Check(
        f"rule:{rule.name}",
        errno.EINVAL,
        rule.statement,
        "the alignment rule the VM was opened with",
        lambda r: refused(r) is None,
        lambda r: refused(r) or f"{field}={r.region.offset:#x} size={r.region.size:#x} gpa={r.region.gpa:#x}",
        lambda r: _move_offset(rule, binding(r), field),
    )


def _move_offset(rule: Rule, binding: Binding, field: str) -> str:
    offset = rule.nearest_offset(binding)
    if offset is None:
        return "no offset near by is accepted; change the slot's size or gpa"
    return f"use {field}={offset:#x}: holes in the file cost nothing"
