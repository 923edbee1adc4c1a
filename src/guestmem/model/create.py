"""KVM_CREATE_VM, KVM_CREATE_VCPU and KVM_CREATE_GUEST_MEMFD: what may be created.

Profile ``next`` adds a flag for hugetlb pages, and their order in what was reserved (HugeTLB work in progress,
07fb82367304); and, as a setting of the machine, huge pages for every file (M. Roth, December 2024, dropped).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

from guestmem.model.checks import Check, require
from guestmem.model.pagecache import Backing, PageCache
from guestmem.model.profiles import Machine, creation_flags
from guestmem.model.vm import GuestMemfd, Vm
from guestmem.uapi import GUEST_MEMFD_FLAG_INIT_SHARED
from guestmem.units import format_size, to_s64

__all__ = ("GUEST_MEMFD_CHECKS", "VCPU_CHECKS", "VM_CHECKS", "GuestMemfdRequest", "create_guest_memfd")

_HUGETLB = "HugeTLB work in progress, 07fb82367304"

VM_CHECKS: tuple[Check[tuple[Machine, int]], ...] = (
    Check(
        "vm-type-offered",
        errno.EINVAL,
        "the VM type must be one that the kernel offers",
        "kvm_arch_init_vm",
        lambda asked: asked[1] in asked[0].vm_types,
        lambda asked: f"type={asked[1]:#x} offered: {', '.join(map(str, asked[0].vm_types))}",
        "KVM_CAP_VM_TYPES has a bit for each type",
    ),
)

VCPU_CHECKS: tuple[Check[tuple[Vm, int]], ...] = (
    Check(
        "vcpu-id",
        errno.EINVAL,
        "the vCPU id must be below KVM_CAP_MAX_VCPU_ID",
        "kvm_vm_ioctl_create_vcpu",
        lambda asked: asked[1] < asked[0].machine.max_vcpu_ids,
        lambda asked: f"id={asked[1]:#x} limit {asked[0].machine.max_vcpu_ids:#x}",
    ),
    Check(
        "vcpu-id-free",
        errno.EEXIST,
        "no vCPU of the VM may have the id already",
        "kvm_vm_ioctl_create_vcpu",
        lambda asked: asked[1] not in asked[0].vcpu_ids,
        lambda asked: f"id={asked[1]} in use: {', '.join(map(str, sorted(asked[0].vcpu_ids))) or 'none'}",
    ),
)


@dataclass(frozen=True, slots=True)
class GuestMemfdRequest:
    """KVM_CREATE_GUEST_MEMFD's argument; size in bytes. Without huge pages the reserved words are not looked at."""

    vm: Vm
    size: int
    flags: int
    reserved: Sequence[int] = ()

    @property
    def page_order(self) -> int:
        """The first byte of what was reserved."""
        return self.reserved[0] & 0xFF if self.reserved and self.vm.profile.huge else 0

    @property
    def is_hugetlb(self) -> bool:
        """Its pages are those of the host's pool and of one size."""
        return bool(self.flags & self.vm.profile.hugetlb_flag)

    @property
    def page_size(self) -> int:
        """The page size asked for, bytes."""
        return self.vm.page_size << self.page_order

    @property
    def backing_order(self) -> int:
        """The order of the largest pages that the file takes."""
        by_setting = self.vm.geometry.orders[1] if self.vm.machine.gmem_2m and self.vm.profile.huge else 0
        return self.page_order or by_setting

    @property
    def pages_free(self) -> int | None:
        """How many pages of the size the host has; None without a limit."""
        return self.vm.pools.free(self.page_order)

    @property
    def valid_flags(self) -> int:
        """Flags the VM takes (kvm_gmem_get_supported_flags, and that for hugetlb pages)."""
        profile = self.vm.profile
        return creation_flags(profile, self.vm.machine, private=self.vm.has_private_mem) | profile.hugetlb_flag


GUEST_MEMFD_CHECKS: tuple[Check[GuestMemfdRequest], ...] = (
    Check(
        "flags-supported",
        errno.EINVAL,
        "only creation flags that KVM_CAP_GUEST_MEMFD_FLAGS reports for the VM are valid",
        "kvm_gmem_create",
        lambda r: r.flags & ~r.valid_flags == 0,
        lambda r: f"flags={r.flags:#x} valid={r.valid_flags:#x}",
    ),
    Check(
        "page-order-of-hugetlb",
        errno.EINVAL,
        "page_order is for a file of hugetlb pages",
        _HUGETLB,
        lambda r: not r.page_order or r.is_hugetlb,
        lambda r: f"flags={r.flags:#x} page_order={r.page_order}",
        "pass the flag for hugetlb pages too",
    ),
    Check(
        "huge-pages-begin-private",
        errno.EINVAL,
        "a file of hugetlb pages must not begin shared: shared pages are base pages",
        _HUGETLB,
        lambda r: not (r.is_hugetlb and r.flags & GUEST_MEMFD_FLAG_INIT_SHARED),
        lambda r: f"flags={r.flags:#x}",
        "create it without INIT_SHARED and convert what is to be shared",
    ),
    Check(
        "page-order-known",
        errno.EINVAL,
        "page_order must be that of huge pages for which the host has a pool",
        _HUGETLB,
        lambda r: not r.is_hugetlb or r.page_order in r.vm.geometry.orders[1:],
        lambda r: f"page_order={r.page_order}, geometry {r.vm.geometry.name}",
        lambda r: f"orders are {', '.join(map(str, r.vm.geometry.orders[1:]))}, in base pages",
    ),
    Check(
        "size-positive",
        errno.EINVAL,
        "size must be positive as a signed number",
        "kvm_gmem_create",
        lambda r: to_s64(r.size) > 0,
        lambda r: f"size={r.size:#x}",
    ),
    Check(
        "size-aligned",
        errno.EINVAL,
        "size must be a multiple of the file's page size",
        "kvm_gmem_create",
        lambda r: r.size % r.page_size == 0,
        lambda r: f"size={r.size:#x} page={r.page_size:#x}",
        "round the size up; pages that nobody touches cost nothing",
    ),
    Check(
        "host-can-reserve",
        errno.ENOMEM,
        "the host must have all pages of a file of hugetlb pages when it is created",
        _HUGETLB,
        lambda r: not r.is_hugetlb or r.pages_free is None or r.pages_free >= r.size // r.page_size,
        lambda r: f"{r.size // r.page_size} pages of {format_size(r.page_size)}, free: {r.pages_free}",
        "add pages of that size to the host's pool",
    ),
)


def create_guest_memfd(request: GuestMemfdRequest) -> GuestMemfd:
    """Make the file; EINVAL, ENOMEM."""
    require(GUEST_MEMFD_CHECKS, request)
    vm, size = request.vm, request.size
    backing: Backing = "hugetlb" if request.is_hugetlb else "thp"
    cache = PageCache(size >> vm.page_shift, request.backing_order, backing, vm.geometry, vm.pools)
    if request.is_hugetlb:
        cache.reserve()
    return GuestMemfd(vm, size, request.flags, request.page_size, cache)
