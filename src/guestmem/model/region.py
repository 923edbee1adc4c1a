"""KVM_SET_USER_MEMORY_REGION and _REGION2: create, move, change and delete memslots.

The checks stand in the kernel's order (kvm_vm_ioctl_set_memory_region, kvm_set_memory_region, kvm_gmem_bind,
kvm_arch_prepare_memory_region), in groups: the kernel branches between them. A refused call changes nothing a VMM can
see, except that a refused *move* has already dropped the old mappings (kvm_invalidate_memslot comes first).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

from guestmem.model import binding
from guestmem.model.checks import Check, note, require
from guestmem.model.files import OpenFile
from guestmem.model.memslots import ALL_SLOTS, MAX_SLOT_PAGES, USER_SLOTS, AddressSpaceSlots, Memslot
from guestmem.model.vm import Vm
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import U64

__all__ = ("RegionRequest", "set_memory_region")

_SOURCE = "kvm_set_memory_region"
_V1_FLAGS = KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY


@dataclass(slots=True)
class RegionRequest:
    """The ioctl's argument; gpa, size, userspace_addr and offset are bytes. ``resolve`` finds a descriptor's file."""

    vm: Vm
    version: int  # 1 or 2
    slot: int
    flags: int
    gpa: int
    size: int
    userspace_addr: int
    fd: int
    offset: int
    resolve: Callable[[int], OpenFile | None]
    file: OpenFile | None = field(default=None, init=False)  # set by the binding checks
    old: Memslot | None = field(default=None, init=False)

    @property
    def as_id(self) -> int:
        """The address space, from the high half of slot."""
        return self.slot >> 16

    @property
    def id(self) -> int:
        """The slot id, from the low half of slot."""
        return self.slot & 0xFFFF

    @property
    def wants_gmem(self) -> bool:
        """The GUEST_MEMFD flag is set."""
        return bool(self.flags & KVM_MEM_GUEST_MEMFD)

    @property
    def space(self) -> AddressSpaceSlots:
        """The slots of the address space named."""
        return self.vm.spaces[self.as_id]

    @property
    def base_gfn(self) -> int:
        """First frame asked for."""
        return self.gpa >> self.vm.page_shift

    @property
    def npages(self) -> int:
        """Frames asked for."""
        return self.size >> self.vm.page_shift


def valid_flags(request: RegionRequest) -> int:
    """Flags that may be set together on this VM (check_memory_region_flags)."""
    vm = request.vm
    valid = 0
    if vm.has_private_mem or vm.profile.gmem_on_any_vm:
        valid |= KVM_MEM_GUEST_MEMFD
    if not request.wants_gmem:
        valid |= KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY
    return valid


ARGUMENT_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "v1-flags",
        errno.EINVAL,
        "KVM_SET_USER_MEMORY_REGION knows only LOG_DIRTY_PAGES and READONLY",
        "kvm_vm_ioctl",
        lambda r: r.version != 1 or not r.flags & ~_V1_FLAGS,
        lambda r: f"flags={r.flags:#x}",
        "use KVM_SET_USER_MEMORY_REGION2 for guest_memfd",
    ),
    Check(
        "slot-id",
        errno.EINVAL,
        f"the slot id must be below {USER_SLOTS}",
        "kvm_vm_ioctl_set_memory_region",
        lambda r: r.slot & 0xFFFF < USER_SLOTS,
        lambda r: f"slot={r.slot:#x} id={r.id}",
    ),
    Check(
        "flags-valid",
        errno.EINVAL,
        "flags must be valid for the VM, and GUEST_MEMFD excludes READONLY and LOG_DIRTY_PAGES",
        "check_memory_region_flags",
        lambda r: not r.flags & ~valid_flags(r),
        lambda r: f"flags={r.flags:#x} valid={valid_flags(r):#x} vm type {r.vm.type}",
    ),
    Check(
        "size-page-aligned",
        errno.EINVAL,
        "memory_size must be a multiple of the page size",
        _SOURCE,
        lambda r: not r.size & (r.vm.page_size - 1),
        lambda r: f"memory_size={r.size:#x} page={r.vm.page_size:#x}",
    ),
    Check(
        "gpa-page-aligned",
        errno.EINVAL,
        "guest_phys_addr must be a multiple of the page size",
        _SOURCE,
        lambda r: not r.gpa & (r.vm.page_size - 1),
        lambda r: f"guest_phys_addr={r.gpa:#x} page={r.vm.page_size:#x}",
    ),
    Check(
        "hva-in-user-space",
        errno.EINVAL,
        "userspace_addr must be page aligned, untagged, and end in user space",
        _SOURCE,
        lambda r: not r.userspace_addr & (r.vm.page_size - 1) and r.userspace_addr + r.size <= r.vm.machine.user_limit,
        lambda r: f"userspace_addr={r.userspace_addr:#x} size={r.size:#x} limit={r.vm.machine.user_limit:#x}",
    ),
    Check(
        "offset-page-aligned",
        errno.EINVAL,
        "guest_memfd_offset must be page aligned and offset + size must not reach 2**64",
        _SOURCE,
        lambda r: not r.wants_gmem or (not r.offset & (r.vm.page_size - 1) and r.offset + r.size < U64),
        lambda r: f"guest_memfd_offset={r.offset:#x} size={r.size:#x}",
    ),
    Check(
        "address-space",
        errno.EINVAL,
        "the address space must exist",
        _SOURCE,
        lambda r: r.slot >> 16 < len(r.vm.spaces) and r.id < ALL_SLOTS,
        lambda r: f"address space {r.as_id} of {len(r.vm.spaces)}",
    ),
    Check(
        "gpa-no-wrap",
        errno.EINVAL,
        "guest_phys_addr + memory_size must not reach 2**64",
        _SOURCE,
        lambda r: r.gpa + r.size < U64,
        lambda r: f"guest_phys_addr={r.gpa:#x} memory_size={r.size:#x}",
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
        lambda r: f"slot {r.as_id}:{r.id}",
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
        lambda r: not r.wants_gmem,
        lambda r: f"slot {r.as_id}:{r.id} exists: {r.old!r}",
        "delete the slot (size 0), then create it",
    ),
    Check(
        "only-gpa-and-dirty-log-change",
        errno.EINVAL,
        "of an existing slot only guest_phys_addr and LOG_DIRTY_PAGES may change",
        _SOURCE,
        lambda r: _same_but_gpa_and_log(r),
        lambda r: f"userspace_addr={r.userspace_addr:#x} pages={r.npages:#x} flags={r.flags:#x} but {r.old!r}",
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
        lambda r: _say_overlap(r),
    ),
)

MAP_CHECKS: tuple[Check[RegionRequest], ...] = (
    Check(
        "gpa-mappable",
        errno.EINVAL,
        "the last frame must be within what the MMU can map",
        "kvm_arch_prepare_memory_region",
        lambda r: r.gpa + r.size <= 1 << r.vm.machine.gpa_bits,
        lambda r: f"gpa [{r.gpa:#x}, {r.gpa + r.size:#x}) limit {1 << r.vm.machine.gpa_bits:#x}",
    ),
)


def set_memory_region(request: RegionRequest) -> None:
    """Do what the ioctl asks, or raise the KvmError of the first check that fails."""
    require(ARGUMENT_CHECKS, request)
    request.old = old = request.space.by_id.get(request.id)
    if not request.size:
        require(DELETE_CHECKS, request)
        assert old is not None
        note("change", "delete {!r}".format, old)
        request.vm.delete_slot(old)
    elif old is None:
        _create(request)
    else:
        _modify(request, old)


def _create(request: RegionRequest) -> None:
    vm = request.vm
    require(CREATE_CHECKS, request)
    require(PLACE_CHECKS, request)
    if request.wants_gmem:
        require(vm.binding_checks, request)
    require(MAP_CHECKS, request)
    slot = Memslot(request.as_id, request.id, request.base_gfn, request.npages, request.flags, request.userspace_addr)
    if request.wants_gmem:
        binding.bind(request, slot)
    note("change", "create {!r}".format, slot)
    vm.insert_slot(slot)


def _modify(request: RegionRequest, old: Memslot) -> None:
    vm = request.vm
    require(MODIFY_CHECKS, request)
    if request.base_gfn != old.base_gfn:
        require(PLACE_CHECKS, request)
        vm.drop_mappings_of(old)
        require(MAP_CHECKS, request)
        note("change", "move {!r} to {:#x}".format, old, request.gpa)
        vm.move_slot(old, request.base_gfn, request.flags)
    elif request.flags != old.flags:
        note("change", "flags of {!r} become {:#x}".format, old, request.flags)
        vm.set_slot_flags(old, request.flags)
    else:
        note("change", "nothing: {!r}".format, old)


def _overlap(request: RegionRequest) -> Memslot | None:
    return request.space.overlapping(request.base_gfn, request.base_gfn + request.npages, request.id)


def _say_overlap(request: RegionRequest) -> str:
    other = _overlap(request)
    where = f"gpa [{request.gpa:#x}, {request.gpa + request.size:#x})"
    return f"{where} is free" if other is None else f"{where} overlaps {other!r}"


def _same_but_gpa_and_log(request: RegionRequest) -> bool:
    old = request.old
    assert old is not None
    return (
        request.userspace_addr == old.userspace_addr
        and request.npages == old.npages
        and not (request.flags ^ old.flags) & (KVM_MEM_READONLY | KVM_MEM_GUEST_MEMFD)
    )
