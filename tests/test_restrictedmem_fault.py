"""Guest accesses under restrictedmem: exits, pages, levels, and the pages that are not the guest's own."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import M2, P
from restricted import REVISIONS, STALE, UPM, V10, V11C, World

import guestmem
from guestmem.backend import Exit
from guestmem.geometry import geometry_named
from guestmem.model.checks import observing
from guestmem.model.profiles import Machine
from guestmem.units import GIB, MIB, TIB

K16 = 4 * P


# -- exits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "flags"), [(V10, 1), (UPM, 8), (V11C, 8), ("restrictedmem", 8)])
def test_private_memory_without_a_file_ends_in_exit_38_and_kvm_run_succeeds(profile: str, flags: int) -> None:
    """private_mem_kvm_exits_test: a deleted slot, and the private attribute on a plain slot."""
    world = World(profile)
    world.private(0, M2)
    world.vm.set_user_memory_region(0, gpa=0, size=P, userspace_addr=0)

    for gpa in (0x10, 0x1010):
        assert world.touch(gpa) == Exit("memory_fault", flags=flags, gpa=gpa // P * P, size=P)


@pytest.mark.parametrize(
    ("profile", "exit"),
    [
        (V10, Exit("unknown", errno="EINTR")),
        (UPM, Exit("unknown", errno="ENOMEM")),
        (V11C, Exit("unknown", errno="ENOMEM")),
    ],
)
def test_without_a_page_v10_takes_the_fault_for_ever_and_later_kvm_run_fails(profile: str, exit: Exit) -> None:
    world = World(profile, machine=Machine(gpa_bits=52, pools=((0, 1),)))
    world.bind(world.file())
    world.private(0, M2)

    assert world.touch(0).kind == "done"
    assert world.touch(P) == exit


@pytest.mark.parametrize("profile", REVISIONS)
def test_a_store_to_a_private_slot_that_is_read_only_never_ends(profile: str) -> None:
    world = World(profile)
    world.bind(world.file(), flags=4 | 2)
    world.private(0, M2)

    assert world.touch(0).kind == "done"
    assert world.vcpu.write(0, 1) == [Exit("unknown", errno="EINTR")]


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", REVISIONS)
def test_a_page_is_allocated_past_the_end_of_the_file_and_not_zeroed(profile: str) -> None:
    world = World(profile, "none")
    file = world.file(P)
    world.bind(file, offset=64 * M2)
    world.private(0, M2)

    assert world.touch(P).value == STALE
    assert world.pages(file) == [(64 * 512 + 1, 1)]


def test_two_vms_of_v10_share_what_they_both_have() -> None:
    world = World(V10)
    file = world.file()
    other = world.kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
    for vm in (world.vm, other):
        world.bind(file, vm=vm)
        world.private(0, M2, vm)

    world.vcpu.write(0x10, 5)

    assert other.create_vcpu().read(0x10) == 5


def test_shared_memory_is_the_hosts_and_private_memory_is_not_seen_there() -> None:
    world = World()
    hva = world.kvm.anonymous(M2)
    world.bind(world.file(), hva=hva)
    world.vcpu.write(0, 1)
    world.private(0, M2)
    world.vcpu.write(0, 2)

    assert (world.kvm.read(hva), world.vcpu.read(0)) == (1, 2)
    world.vm.set_memory_attributes(0, M2, 0)
    assert world.vcpu.read(0) == 1


# -- levels ------------------------------------------------------------------------------------------------------------


def huge(rule: str = "none", profile: str = "restrictedmem") -> World:
    world = World(profile, rule)
    world.kvm.set_shmem_enabled("always")
    return world


@pytest.mark.parametrize("profile", REVISIONS)
def test_a_folio_of_2m_is_mapped_whole_where_everything_agrees(profile: str) -> None:
    world = huge("or-metadata" if profile == V10 else "none", profile)
    world.bind(world.file(), size=2 * M2)
    world.private(0, 2 * M2)

    world.touch(P)

    assert world.leaves() == [(0, 512, 0)]


@pytest.mark.parametrize(
    ("how", "leaf"),
    [
        ({"gpa": 0, "hva": P}, 1),  # GPA and userspace_addr differ
        ({"gpa": P, "hva": P, "size": M2}, 1),  # the block reaches out of the slot
        ({"flags": 4}, 512),
        ({"flags": 4 | 2}, 512),
    ],
)
def test_what_forbids_a_level_is_the_slots_and_never_the_hosts_mapping(how: dict[str, Any], leaf: int) -> None:
    world = huge()
    world.bind(world.file(), **{"size": 2 * M2, **how})
    world.private(0, 4 * M2)

    world.touch(how.get("gpa", 0))

    assert [frames for _, frames, _ in world.leaves()] == [leaf]


def test_dirty_logging_forbids_huge_mappings_in_v10() -> None:
    world = huge("or-metadata", V10)
    world.bind(world.file(), flags=4 | 1)
    world.private(0, M2)

    world.touch(0)

    assert world.leaves() == [(0, 1, 0)]


@pytest.mark.parametrize("rule", ["none", "gpa-alignment", "gpa-page", "fits-size", "creation-flags", "or-metadata"])
def test_offset_2m_and_gpa_1m_pass_every_rule_that_was_wanted_and_show_the_wrong_pages(rule: str) -> None:
    """GPA 2M to 4M shows file 2M to 4M, and should show 3M to 5M."""
    world = huge(rule)
    world.bind(world.file(0), gpa=MIB, size=4 * MIB, offset=2 * MIB, hva=MIB)
    world.private(0, 8 * MIB)

    world.touch(2 * MIB)

    assert world.leaves() == [(512, 512, 2 * MIB // P)]


def test_the_or_of_v10_lets_offset_0_and_gpa_1m_pass_and_the_leaf_shows_the_first_pages_of_the_file() -> None:
    world = huge("or-metadata", V10)
    world.bind(world.file(0), gpa=MIB, size=4 * MIB, hva=MIB)
    world.private(0, 8 * MIB)

    with observing() as walked:
        world.touch(2 * MIB)

    assert world.leaves() == [(512, 512, 0)], "and not file 1M to 3M"
    [wrong] = [step.text for step in walked if step.name == "wrong-page"]
    assert wrong.startswith("gpa [0x200000, 0x400000) shows file [0x0, 0x200000) instead of [0x100000, 0x300000); ")


def test_the_example_of_the_mail_takes_a_page_that_another_slot_has() -> None:
    """1G pages, a slot of 1G at offset 0x4000, an access to page 8 of the file: rounding down gives page 0."""
    world = World("restrictedmem", "none")
    file = world.file(2 * GIB, page_size=GIB)
    other = world.kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
    world.bind(file, vm=other, size=K16)
    world.private(0, K16, other)
    world.bind(file, size=GIB, offset=K16)
    world.private(0, GIB)
    secret = other.create_vcpu()
    secret.write(0x100, 0x5EC4E7)

    world.touch(0x8000 - K16)

    assert world.pages(file) == [(0, GIB // P)]
    assert world.leaves() == [(0, GIB // P, 0)]
    assert world.vcpu.read(0x100) == 0x5EC4E7, "memory of another VM"


def test_a_page_of_512g_is_taken_by_an_architecture_that_has_one() -> None:
    geometry = geometry_named("x86-64-512G")
    kvm = guestmem.open("model", profile="restrictedmem", machine=Machine(gpa_bits=52, geometry=geometry))
    vm = kvm.create_vm(1)
    file = kvm.memfd_restricted(page_size=TIB // 2)
    file.truncate(TIB)

    with pytest.raises(guestmem.KvmError, match="rule:creation-flags"):
        vm.set_user_memory_region2(0, gpa=0, size=TIB, guest_memfd=file, guest_memfd_offset=GIB)
    vm.set_user_memory_region2(0, gpa=0, size=TIB, guest_memfd=file)
    vm.set_memory_attributes(0, TIB, 8)
    vm.create_vcpu().write(0, 1)

    assert [order for _, _, order in file.model.cache.folios] == [27]


# -- marks of blocks that are only partly private ----------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "leaf"), [(V10, 512), (UPM, 512), (V11C, 1)])
def test_a_slot_made_after_the_attributes_does_not_know_them(profile: str, leaf: int) -> None:
    """Sean, 13 January 2023 (Y8HmS2iE4u0Gfkrn@google.com)."""
    world = huge("none", profile)
    world.private(0, M2)
    world.vm.set_memory_attributes(P, P, 0)
    world.bind(world.file())

    world.touch(0)

    assert world.leaves()[0][1] == leaf


@pytest.mark.parametrize("profile", REVISIONS)
def test_a_slot_that_was_there_keeps_to_blocks_that_are_all_private(profile: str) -> None:
    world = huge("none", profile)
    world.bind(world.file(), size=2 * M2)
    world.private(0, 2 * M2)
    world.vm.set_memory_attributes(P, P, 0)

    world.touch(0)
    world.touch(M2)
    assert world.leaves() == [(0, 1, 0), (512, 512, 512)]
    world.private(P, P)
    world.touch(P)
    assert world.leaves() == [(0, 1024, 0)]


@pytest.mark.parametrize(("profile", "leaf"), [("restrictedmem", GIB // P), (V11C, 512)])
def test_a_change_in_one_block_of_2m_is_not_marked_at_1g(profile: str, leaf: int) -> None:
    """I. Yamahata, 5 December 2022. Pages of 1G need the creation flags, or a host that we made up."""
    world = World(profile, "none")
    world.kvm.set_shmem_enabled("always", page_size=GIB)
    world.bind(world.file(0), size=GIB)
    world.private(0, GIB)
    world.vm.set_memory_attributes(P, P, 0)

    world.touch(M2)

    assert [frames for _, frames, _ in world.leaves()] == [leaf]


def test_writing_back_says_that_all_was_done() -> None:
    world = World(V10)

    written = world.kvm.backend.set_memory_attributes(world.vm.fd, M2, 3 * P, 8, 0)

    assert (written.address, written.size) == (M2 + 3 * P, 0)  # type: ignore[union-attr]
