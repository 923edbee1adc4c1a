"""Coverage is a computation: faulting every page of small random VMs in the model must give the same mappings."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import PAGE, SIZES, SMALL, small_layouts

from guestmem.backend import Touch
from guestmem.errors import KvmError
from guestmem.layout import Backing, Coverage, File, HostLimits, Layout, Slot, cover
from guestmem.layout.binding import FileLimits
from guestmem.model.process import Process
from guestmem.model.profiles import PROFILES, Machine
from guestmem.model.vm import Vm
from guestmem.objects import GuestMemfd, Kvm
from guestmem.objects import Vm as VmObject
from guestmem.rules import RULES, Rule
from guestmem.uapi import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_SW_PROTECTED_VM,
    PROT_READ,
    PROT_WRITE,
)

FILE_PAGES = 16 * 60  # more than the random slots can bind
LARGEST = SIZES[-1]


@given(small_layouts(), st.sampled_from(["next", *PROFILES]), st.sampled_from(RULES), st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_faulting_every_page_maps_what_coverage_says(layout: Layout, profile: str, rule: Rule, random: Random) -> None:
    layout = for_profile(layout, profile)
    with Kvm(Process(PROFILES[profile], Machine(geometry=SMALL), rule)) as kvm:
        vm = kvm.create_vm(KVM_X86_SW_PROTECTED_VM)
        layout = build(kvm, vm, layout)
        vcpu = vm.create_vcpu()
        pages = [page for slot in layout.slots for page in range(slot.gpa, slot.end, PAGE)]
        random.shuffle(pages)
        for page in pages:
            vcpu.touch(Touch(page, "r", 1))
        limits = FileLimits(page_size=PAGE if profile == "next" else 0, rule=rule, serve_shared=profile != "v6.12")
        coverage = cover(layout, HostLimits(SMALL, files=limits))
        for slot in layout.slots:
            for page in range(slot.gpa, slot.end, PAGE):
                assert mapped_size(vm.model, page) == level_at(coverage, page), (hex(page), slot)


def for_profile(layout: Layout, profile: str) -> Layout:
    """Files that the profile can create: no flags before 6.18, a page size for each with ``next``."""
    files = tuple(
        File(file.name, FILE_PAGES * PAGE, file.flags & (profile != "v6.12"), (file.page_size or SIZES[1]))
        for file in layout.files
    )
    return replace(layout, files=files)


def build(kvm: Kvm, vm: VmObject, layout: Layout) -> Layout:
    """Create files, host memory, slots and attributes; the layout with its real HVAs. A rule may refuse a slot."""
    huge = kvm.model.profile.huge
    files = {
        file.name: vm.create_guest_memfd(file.size, file.flags, page_size=file.page_size if huge else 0)
        for file in layout.files
    }
    slots = []
    for number, slot in enumerate(layout.slots):
        order = SMALL.order_of(slot.backing.page_size)
        where = kvm.model.anonymous(slot.size + 4 * LARGEST, PROT_READ | PROT_WRITE, LARGEST, order)
        residue = slot.gpa if slot.hva is None else slot.hva
        slot = replace(
            slot, hva=where + LARGEST + residue % LARGEST, backing=Backing("hugetlb", slot.backing.page_size)
        )
        with suppress(KvmError):
            set_slot(vm, number, slot, files)
        slots.append(slot)
    for run in layout.private:
        vm.set_memory_attributes(run.start, run.end - run.start, KVM_MEMORY_ATTRIBUTE_PRIVATE)
    return replace(layout, slots=tuple(slots))


def set_slot(vm: VmObject, number: int, slot: Slot, files: dict[str, GuestMemfd]) -> None:
    """KVM_SET_USER_MEMORY_REGION2 of a layout's slot."""
    vm.set_user_memory_region2(
        number,
        gpa=slot.gpa,
        size=slot.size,
        userspace_addr=slot.hva or 0,
        guest_memfd=files[slot.file] if slot.file else None,
        guest_memfd_offset=slot.offset or 0,
        flags=slot.flags & ~KVM_MEM_GUEST_MEMFD,
    )


def mapped_size(vm: Vm, page: int) -> int | None:
    """The size of the leaf that maps a guest-physical address in the model."""
    leaf = vm.stage2.get(page // PAGE)
    return None if leaf is None else SMALL.page_size(leaf.order)


def level_at(coverage: Coverage, gpa: int) -> int | None:
    """The largest size that coverage allows at gpa, or None."""
    (item,) = [item for item in coverage.slots if item.slot.gpa <= gpa < item.slot.end]
    allowed = [
        size
        for size, segments in zip(item.sizes, item.segments, strict=True)
        for segment in segments
        if segment.start <= gpa < segment.end and segment.reason is None
    ]
    return max(allowed, default=None)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_the_profiles_differ_where_the_host_says_so(profile: str) -> None:
    assert bool(PROFILES[profile].gmem_flags) == (profile != "v6.12")
