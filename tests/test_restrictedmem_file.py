"""What a memfd_restricted file takes from shmem, and what its slots hear when pages go or break."""

from __future__ import annotations

import pytest
from helpers import M2, P, signal_of
from restricted import REVISIONS, STALE, UPM, V10, V11C, World

import guestmem
from guestmem.backend import SHMEM_POLICIES, Exit
from guestmem.units import GIB

LARGE = [(0, 512)]


# -- the setting -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "size", "folio"),
    [
        ("never", 8 * M2, (5, 1)),
        ("deny", 8 * M2, (5, 1)),
        ("advise", 8 * M2, (5, 1)),  # there can be no mapping with MADV_HUGEPAGE
        ("always", P, (0, 512)),  # even if it sticks out of the file
        ("force", P, (0, 512)),
        ("within_size", M2, (0, 512)),
        ("within_size", M2 - P, (5, 1)),
    ],
)
def test_the_setting_decides_which_page_is_taken(policy: str, size: int, folio: tuple[int, int]) -> None:
    world = World(rule="none")
    world.kvm.set_shmem_enabled(policy)  # type: ignore[arg-type]
    file = world.file(size)
    world.bind(file)
    world.private(0, M2)

    world.touch(5 * P)

    assert world.pages(file) == [folio]
    assert policy in SHMEM_POLICIES


def test_a_huge_page_needs_its_whole_block_to_be_empty() -> None:
    world = World()
    file = world.file()
    world.bind(file)
    world.private(0, M2)
    world.touch(7 * P)
    world.kvm.set_shmem_enabled("always")

    world.touch(0)

    assert world.pages(file) == [(0, 1), (7, 1)]


def test_the_setting_may_change_while_a_slot_is_bound_and_counts_for_what_is_not_there_yet() -> None:
    """The mail of 18 April: a check must not rest on the page that the backing takes now."""
    world = World(rule="current-backing")
    file = world.file()
    world.bind(file, offset=0x4000, size=2 * M2)  # accepted: base pages at the moment
    world.private(0, 2 * M2)
    world.touch(M2)
    world.kvm.set_shmem_enabled("always")

    world.touch(0)

    assert world.pages(file) == [(0, 512), (516, 1)], "the first page is in a folio that begins before the binding"


def test_an_allocation_within_the_size_takes_huge_pages_up_to_its_last_whole_block() -> None:
    world = World()
    world.kvm.set_shmem_enabled("within_size")
    file = world.file(M2 + 2 * P)

    file.allocate(0, M2 + 2 * P)

    assert world.pages(file) == [(0, 512), (512, 1), (513, 1)]
    assert file.stat().st_blksize == M2


def test_a_page_size_asked_for_counts_until_the_setting_is_written() -> None:
    world = World()
    file = world.file(4 * GIB, page_size=GIB)
    file.allocate(0, P)
    world.kvm.set_shmem_enabled("always")
    file.allocate(GIB, P)

    assert world.pages(file) == [(0, GIB // P), (GIB // P, 512)]


def test_a_file_without_pages_costs_nothing_whatever_its_size() -> None:
    world = World()
    world.file((1 << 62), page_size=GIB)

    assert world.kvm.model.pools.used() == {}


def test_a_guest_that_came_by_another_page_of_a_folio_loses_its_memory_to_an_allocation() -> None:
    """The flag is that of the page, and the folio's first page is asked: an inference, not named in 2023."""
    world = World()
    world.kvm.set_shmem_enabled("always")
    file = world.file()
    world.bind(file)
    world.private(0, M2)
    world.vcpu.write(P, 7)
    assert world.vcpu.read(0) == STALE

    file.allocate(0, M2)

    assert (world.vcpu.read(P), world.vcpu.read(0)) == (0, 0)


# -- holes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", REVISIONS)
def test_a_hole_takes_pages_and_mappings_and_no_attribute(profile: str) -> None:
    world = World(profile)
    file = world.file()
    world.bind(file, size=2 * M2)
    world.private(0, 2 * M2)
    for page in range(4):
        world.vcpu.write(page * P, page)

    file.punch_hole(P, 2 * P)

    assert world.leaves() == [(0, 1, 0), (3, 1, 3)]
    assert [world.vcpu.read(page * P) for page in range(4)] == [0, STALE, STALE, 3]


@pytest.mark.parametrize(
    ("profile", "left"),
    [
        ("restrictedmem", [1]),  # as it should be: the frame of the page
        (V10, [1]),
        (UPM, [0]),  # M. Roth, 13 February: the frame is taken for the file's index, and the right one stays
        (V11C, [0]),
    ],
)
def test_a_hole_in_a_slot_that_is_bound_further_up(profile: str, left: list[int]) -> None:
    world = World(profile, "none")
    file = world.file()
    world.bind(file, offset=P, size=4 * P)
    world.private(0, M2)
    world.touch(0)
    world.touch(P)

    file.punch_hole(P, P)

    assert [frame for frame, *_ in world.leaves()] == left


@pytest.mark.parametrize(("profile", "left"), [("restrictedmem", 1), (V10, 0)])
def test_a_hole_below_the_offset_unmaps_the_whole_slot_in_v10(profile: str, left: int) -> None:
    """V. Annapurve, 5 January 2023: with base + end < offset the difference wraps, and counts as the slot's end."""
    world = World(profile, "none")
    file = world.file()
    world.bind(file, gpa=P, hva=P, offset=4 * M2)
    world.private(0, 2 * M2)
    world.touch(P)

    file.punch_hole(0, P)

    assert len(world.leaves()) == left


def test_a_hole_in_part_of_a_huge_page_leaves_the_rest_as_base_pages() -> None:
    world = World()
    world.kvm.set_shmem_enabled("always")
    file = world.file()
    file.allocate(0, M2)

    file.punch_hole(P, P)

    assert world.pages(file)[:3] == [(0, 1), (2, 1), (3, 1)]
    assert len(world.pages(file)) == 511


# -- memory failure ----------------------------------------------------------------------------------------------------


def test_memory_failure_ends_every_vm_that_watches_the_file_in_v10() -> None:
    world = World(V10)
    file = world.file()
    other = world.kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
    far = other.create_vcpu()
    world.bind(file)
    world.bind(file, vm=other, offset=4 * M2)
    world.private(0, M2)
    world.touch(0)

    file.poison(0)

    assert world.touch(0) == world.touch(0, far) == Exit("shutdown")
    assert world.touch(0).kind == "done", "asked once; mapping and page stay"


@pytest.mark.parametrize("profile", [UPM, V11C, "restrictedmem"])
def test_memory_failure_is_a_sigbus_to_the_process_after_v10(profile: str) -> None:
    world = World(profile)
    file = world.file()
    world.bind(file)
    world.private(0, M2)
    world.touch(0)

    assert signal_of(lambda: file.poison(0)) == "SIGBUS"
    assert signal_of(lambda: file.poison(P)) is None, "a hole"
    assert world.touch(0).kind == "done", "mapping and page stay"
    assert world.leaves() == [(0, 1, 0)]
