"""KVM_CREATE_VM, KVM_CREATE_VCPU and KVM_CREATE_GUEST_MEMFD: what may be created.

Profile ``next`` adds to a guest_memfd a page size and a backing, chosen by creation flags
(``uapi.GUEST_MEMFD_FLAG_HUGE_PAGES``).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from guestmem.model.checks import Check, require
from guestmem.model.pagecache import Backing, PageCache
from guestmem.model.profiles import Machine, creation_flags
from guestmem.model.vm import GuestMemfd, Vm
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_HUGE_PAGES,
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_HUGE_MASK,
    GUEST_MEMFD_HUGE_SHIFT,
)
from guestmem.units import format_size, to_s64

__all__ = ("GUEST_MEMFD_CHECKS", "VCPU_CHECKS", "VM_CHECKS", "GuestMemfdRequest", "create_guest_memfd")

_HUGETLB = "HugeTLB work in progress, 07fb82367304"
_SIZE_FIELD = GUEST_MEMFD_HUGE_MASK << GUEST_MEMFD_HUGE_SHIFT

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
    """KVM_CREATE_GUEST_MEMFD's argument; size in bytes. The reserved words are not looked at."""

    vm: Vm
    size: int
    flags: int

    @property
    def wants_huge(self) -> bool:
        """Asks for a page size, which only profile next knows."""
        return self.vm.profile.huge and bool(self.flags & GUEST_MEMFD_FLAG_HUGE_PAGES)

    @property
    def page_size(self) -> int:
        """The page size asked for, bytes; 0 where the field names none."""
        if not self.wants_huge:
            return self.vm.page_size
        logarithm = self.flags >> GUEST_MEMFD_HUGE_SHIFT & GUEST_MEMFD_HUGE_MASK
        return 1 << logarithm if logarithm else 0

    @property
    def is_hugetlb(self) -> bool:
        """Its pages are those of the host's pool and of one size."""
        return self.wants_huge and self.backing == "hugetlb"

    @property
    def pages_free(self) -> int | None:
        """How many pages of the size the host has; None without a limit."""
        return self.vm.pools.free(self.vm.geometry.order_of(self.page_size))

    @property
    def backing(self) -> Backing:
        """What happens when the host has no page of that size."""
        return "hugetlb" if self.flags & GUEST_MEMFD_FLAG_HUGETLB else "thp"

    @property
    def valid_flags(self) -> int:
        """Flags the VM takes (kvm_gmem_get_supported_flags; with profile next, those that go together)."""
        profile, flags = self.vm.profile, self.flags
        valid = creation_flags(profile, self.vm.machine, private=self.vm.has_private_mem)
        if profile.huge:
            valid |= GUEST_MEMFD_FLAG_HUGE_PAGES
            if flags & GUEST_MEMFD_FLAG_HUGE_PAGES:
                valid |= _SIZE_FIELD | GUEST_MEMFD_FLAG_HUGETLB
        return valid


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
        "huge-pages-begin-private",
        errno.EINVAL,
        "a file of hugetlb pages must not begin shared: shared pages are base pages",
        _HUGETLB,
        lambda r: not (r.is_hugetlb and r.flags & GUEST_MEMFD_FLAG_INIT_SHARED),
        lambda r: f"flags={r.flags:#x}",
        "create it without INIT_SHARED and convert what is to be shared",
    ),
    Check(
        "page-size-known",
        errno.EINVAL,
        "the page size must be a leaf size of the VM's stage-2 tables",
        "profile next",
        lambda r: r.page_size in r.vm.geometry.page_sizes,
        lambda r: f"page size {r.page_size:#x}, geometry {r.vm.geometry.name}",
        "encode log2 of the page size in bits 26 to 31",
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


def create_guest_memfd(vm: Vm, size: int, flags: int) -> GuestMemfd:
    """Make a file of size bytes; EINVAL."""
    request = GuestMemfdRequest(vm, size, flags)
    require(GUEST_MEMFD_CHECKS, request)
    order = vm.geometry.order_of(request.page_size)
    cache = PageCache(size >> vm.page_shift, order, request.backing, vm.geometry, vm.pools)
    if request.is_hugetlb:
        cache.reserve()
    return GuestMemfd(vm, size, flags, cache)
