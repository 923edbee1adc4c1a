"""Kernel versions and machines as data: what differs, and nothing else.

A *profile* is a kernel version: which flags exist, which errno a check gives, which corner it has. A *machine* is the
host it runs on: which VM types it offers, how far guest-physical addresses reach, how much memory of each page size it
has. Where each field's value was seen on a real kernel is in docs/kernel-behaviour.md.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from guestmem.errors import InputError
from guestmem.geometry import X86_64, Geometry
from guestmem.model.restrictedmem import revision as revisions
from guestmem.model.restrictedmem.revision import Revision
from guestmem.rules import DEFAULT, CreationFlags, GpaAlignment, NoRule, OrMetadata, Rule
from guestmem.text import no_such
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_HUGETLB,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
)

__all__ = (
    "HISTORY",
    "NEWEST",
    "NEXT",
    "PROFILES",
    "RESTRICTEDMEM",
    "RESTRICTEDMEM_UPM",
    "RESTRICTEDMEM_V10",
    "RESTRICTEDMEM_V11C",
    "V6_12",
    "V6_18",
    "V7_2",
    "V7_3",
    "V7_4",
    "Machine",
    "Profile",
    "converts_in_place",
    "creation_flags",
    "has_guest_memfd",
    "has_private_mem",
    "kernel_named",
    "offers_private_mem",
    "profile_named",
)


@dataclass(frozen=True, slots=True)
class Machine:
    """The host: everything the outcomes depend on that is not the kernel's version."""

    vm_types: tuple[int, ...] = (KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM)
    smm: bool = True  # a second address space of memslots on VMs without private memory
    two_dimensional_paging: bool = True
    gpa_bits: int = 40  # guest-physical addresses the MMU can map are below 2**gpa_bits
    user_limit: int = 0x7FFF_FFFF_F000  # end of user space; 4-level paging
    nx_huge_pages: bool = False  # the NX hugepage workaround: instruction fetches map base pages
    geometry: Geometry = X86_64
    private_mem: bool | None = None  # built for VMs with private memory, if only SNP or TDX; None: as vm_types says
    vm_attributes: bool = True  # CONFIG_KVM_VM_MEMORY_ATTRIBUTES, a choice from 7.4 on: attributes of the VM's frames
    in_place: bool = False  # module parameter gmem_in_place_conversion; without vm_attributes there is no other way
    gmem_2m: bool = False  # gmem_2m_enabled of December 2024: every file takes huge pages where they fit
    max_vcpu_ids: int = 4096  # KVM_MAX_VCPU_IDS: 4 * CONFIG_KVM_MAX_NR_VCPUS; 16384 in distribution kernels
    pools: tuple[tuple[int, int], ...] = ()
    """Pairs of order and how many host pages of it there are; an order that is missing has no limit."""

    def converting(self, *, in_place: bool) -> Machine:
        """The same, with attributes that belong to files, or switched off for attributes of VMs (from 7.4 on)."""
        return replace(self, vm_attributes=not in_place, in_place=False)

    def __post_init__(self) -> None:
        if not self.geometry.base_page_size.bit_length() <= self.gpa_bits <= 64:
            raise InputError(f"gpa_bits {self.gpa_bits} is not between those of a page and 64")
        for vm_type in self.vm_types:
            if vm_type not in (KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM):
                raise InputError(f"VM type {vm_type} is not modelled; there are 0 (default) and 1 (software-protected)")
        for order, count in self.pools:
            if order not in self.geometry.orders or count < 0:
                raise InputError(f"a pool of {count} pages of order {order}: not a leaf size of {self.geometry.name}")


@dataclass(frozen=True, slots=True)
class Profile:
    """A kernel version, as the differences that user space can see."""

    name: str
    title: str
    machine: Machine  # the machine its recordings were made on; the default
    gmem_flags: int  # creation flags of a VM without private memory (kvm_gmem_get_supported_flags)
    gmem_flags_private: int  # ... of a VM with private memory
    gmem_on_any_vm: bool  # KVM_MEM_GUEST_MEMFD is valid on VMs without private memory
    binding_overlap_errno: int
    signed_binding_offset: bool  # kvm_gmem_bind() adds offset and size as loff_t
    fallocate_modes: int  # mode bits the generic layer knows (vfs_fallocate)
    gmem_mmap: bool  # guest_memfd has an mmap operation, and pseudo file systems (pipes too) are noexec
    pre_fault_renews_root: bool  # else pre-fault spins on a root made before the last slot deletion
    dirty_log_off_recovers: bool  # else huge mappings come back only at the next fault
    quirks: int = 0x7FF  # KVM_X86_VALID_QUIRKS
    binding_overlap_last: bool = False  # kvm_gmem_commit_memory_region: after what the architecture checks
    in_place: bool = False  # attributes can belong to the file (guest_memfd: In-place conversion support)
    hugetlb_flag: int = 0  # creation flag of a guest_memfd of hugetlb pages; 0: there are none
    rule: Rule = DEFAULT  # the alignment rule, where one is asked
    revision: Revision | None = None  # restrictedmem, which guest_memfd replaced: the profile has the one or the other

    @property
    def huge(self) -> bool:
        """Whether the folios of a guest_memfd may be larger than a page."""
        return bool(self.hugetlb_flag)


_FALLOCATE_6_12 = 0x7B  # KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE; NO_HIDE_STALE is refused
_FALLOCATE_6_18 = _FALLOCATE_6_12 | 0x80  # WRITE_ZEROES, 6.17
_PVM = Machine(vm_types=(KVM_X86_DEFAULT_VM,), smm=False, two_dimensional_paging=False, gpa_bits=52)
_BOTH = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED

V6_12 = Profile(
    name="v6.12",
    title="Linux 6.12 (6.12.117), software-protected VMs, two-dimensional paging",
    machine=Machine(),
    gmem_flags=0,
    gmem_flags_private=0,
    gmem_on_any_vm=False,
    binding_overlap_errno=errno.EINVAL,
    signed_binding_offset=False,
    fallocate_modes=_FALLOCATE_6_12,
    gmem_mmap=False,
    pre_fault_renews_root=False,
    dirty_log_off_recovers=False,
)
V6_18 = replace(
    V6_12,
    name="v6.18",
    title="Linux 6.18 (6.18.44), PVM flavour: VM type 0 only, shadow paging",
    machine=_PVM,
    gmem_flags=_BOTH,
    gmem_flags_private=GUEST_MEMFD_FLAG_MMAP,
    gmem_on_any_vm=True,
    signed_binding_offset=True,
    fallocate_modes=_FALLOCATE_6_18,
    gmem_mmap=True,
    pre_fault_renews_root=True,
    dirty_log_off_recovers=True,
)
V7_2 = replace(
    V6_18,
    name="v7.2",
    quirks=0xFFF,  # NESTED_SVM_SHARED_PAT
    title="Linux 7.2 (7.2.13), software-protected VMs, two-dimensional paging",
    machine=Machine(),
    binding_overlap_errno=errno.EEXIST,
    signed_binding_offset=False,
)
V7_3 = replace(
    V7_2,
    name="v7.3",
    title="Linux 7.3 (7.3.4), software-protected VMs, two-dimensional paging",
    binding_overlap_last=True,
)
V7_4 = replace(
    V7_3,
    name="v7.4",
    title="no kernel yet: 7.3 with the in-place conversion that is queued for 7.4, built without VM-wide attributes",
    machine=Machine(vm_attributes=False),
    in_place=True,
)
NEXT = replace(
    V7_4,
    name="next",
    title="no kernel yet: 7.4 with hugepage guest_memfd, built without VM-wide attributes",
    machine=Machine(gpa_bits=52, vm_attributes=False),
    hugetlb_flag=GUEST_MEMFD_FLAG_HUGETLB,
)

RESTRICTEDMEM = Profile(
    name="restrictedmem",
    title="no kernel: restrictedmem of April 2023, with the creation flags that its last mail asks for",
    machine=Machine(),
    gmem_flags=0,
    gmem_flags_private=0,
    gmem_on_any_vm=False,
    binding_overlap_errno=errno.EINVAL,
    signed_binding_offset=False,
    fallocate_modes=_FALLOCATE_6_12,
    gmem_mmap=False,
    pre_fault_renews_root=False,
    dirty_log_off_recovers=False,
    quirks=0x7F,  # Linux 6.1
    rule=CreationFlags(),
    revision=revisions.SEED,
)
RESTRICTEDMEM_V10 = replace(
    RESTRICTEDMEM,
    name="restrictedmem-v10",
    title="no kernel: restrictedmem as posted on 2 December 2022, with the test-only VM type",
    rule=OrMetadata(),
    revision=revisions.V10,
)
RESTRICTEDMEM_UPM = replace(
    RESTRICTEDMEM,
    name="restrictedmem-upm",
    title="no kernel: restrictedmem as reworked on 14 January 2023",
    rule=NoRule(),
    revision=revisions.UPM,
)
RESTRICTEDMEM_V11C = replace(
    RESTRICTEDMEM,
    name="restrictedmem-v11c",
    title="no kernel: restrictedmem as it stood in March 2023, prepared for an eleventh version that was not posted",
    rule=GpaAlignment(),
    revision=revisions.V11C,
)

NEWEST = V7_3  # the newest released kernel: what is meant where nothing is said

PROFILES: Mapping[str, Profile] = MappingProxyType({p.name: p for p in (V6_12, V6_18, V7_2, V7_3, V7_4, NEXT)})
"""The kernels with guest_memfd."""
HISTORY: Mapping[str, Profile] = MappingProxyType(
    {p.name: p for p in (RESTRICTEDMEM, RESTRICTEDMEM_V10, RESTRICTEDMEM_UPM, RESTRICTEDMEM_V11C)}
)
"""The system before it."""


def profile_named(name: str) -> Profile:
    """Find a profile by the name used on the command line; InputError lists the names."""
    found = PROFILES.get(name) or HISTORY.get(name)
    if found is None:
        raise InputError(no_such("profile", name, (*PROFILES, *HISTORY)))
    return found


def kernel_named(name: str) -> Profile:
    """Find a profile that has guest_memfd; InputError lists the names, and says so of one that is history."""
    if name in HISTORY:
        raise InputError(f"profile {name} is the system before guest_memfd; here there are {', '.join(PROFILES)}")
    return profile_named(name)


def has_private_mem(vm_type: int) -> bool:
    """Whether a VM of this type has private memory (kvm_arch_has_private_mem)."""
    return vm_type == KVM_X86_SW_PROTECTED_VM


def offers_private_mem(machine: Machine) -> bool:
    """Whether the kernel is built with a VM type that has private memory, here or only where there is SNP or TDX."""
    if machine.private_mem is not None:
        return machine.private_mem
    return any(has_private_mem(type) for type in machine.vm_types)


def has_guest_memfd(profile: Profile, machine: Machine) -> bool:
    """Whether the kernel has KVM_CREATE_GUEST_MEMFD: 6.12 only with private memory, later ones on x86-64 always.

    CONFIG_KVM_PRIVATE_MEM, then CONFIG_KVM_GUEST_MEMFD; restrictedmem has files of its own.
    """
    return profile.revision is None and (profile.gmem_on_any_vm or offers_private_mem(machine))


def converts_in_place(profile: Profile, machine: Machine) -> bool:
    """Whether attributes belong to the guest_memfd and not to the VM (gmem_in_place_conversion)."""
    return profile.in_place and offers_private_mem(machine) and (machine.in_place or not machine.vm_attributes)


def creation_flags(profile: Profile, machine: Machine, *, private: bool) -> int:
    """What a guest_memfd may be created with on a VM with or without private memory (kvm_gmem_get_supported_flags)."""
    return profile.gmem_flags_private if private and not converts_in_place(profile, machine) else profile.gmem_flags
