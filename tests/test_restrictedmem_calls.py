"""memfd_restricted(2), ftruncate(2), fallocate(2) and what else such a file answers, as v10 1/9 has it."""

from __future__ import annotations

import pytest
from helpers import M2, RELEASED, P, errno_of
from restricted import REVISIONS, STALE, UPM, V10, V11C, World

import guestmem
from guestmem.uapi import MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from guestmem.units import GIB, KIB, S64_MAX

KEEP, PUNCH, COLLAPSE, ZERO, INSERT, UNSHARE = 1, 3, 8, 16, 32, 64


@pytest.mark.parametrize("profile", [*RELEASED, "v7.4", "next"])
def test_no_later_kernel_has_the_call(profile: str) -> None:
    kvm = guestmem.open("model", profile=profile)

    assert errno_of(lambda: kvm.memfd_restricted()) == "ENOSYS"


@pytest.mark.parametrize("profile", REVISIONS)
def test_what_came_later_is_not_there(profile: str) -> None:
    world = World(profile)

    assert errno_of(lambda: world.vm.create_guest_memfd(P)) == "ENOTTY"
    assert errno_of(lambda: world.vcpu.pre_fault_memory(0, P)) == "EINVAL"
    assert errno_of(lambda: world.vm.set_user_memory_region2(0, gpa=0, size=P)) == (
        "ENOTTY" if profile == V10 else None
    )


@pytest.mark.parametrize("profile", REVISIONS)
@pytest.mark.parametrize("flags", [1, 2, 1 << 20, 1 << 31])
def test_flags_are_refused(profile: str, flags: int) -> None:
    assert errno_of(lambda: World(profile).kvm.memfd_restricted(flags)) == "EINVAL"


@pytest.mark.parametrize("page_size", [P, 2 * KIB * KIB, GIB])
def test_a_page_size_is_taken_by_the_system_of_the_last_mail(page_size: int) -> None:
    assert World().file(page_size=page_size).model.page_order == (page_size // P).bit_length() - 1


@pytest.mark.parametrize("profile", REVISIONS[1:])
def test_no_page_size_is_taken_by_what_was_posted(profile: str) -> None:
    assert errno_of(lambda: World(profile).kvm.memfd_restricted(page_size=P)) == "EINVAL"


def test_a_page_size_that_is_no_leaf_size_is_refused() -> None:
    assert errno_of(lambda: World().kvm.memfd_restricted(page_size=4 * GIB)) == "EINVAL"


@pytest.mark.parametrize("profile", REVISIONS)
def test_the_authors_own_test_of_the_file(profile: str) -> None:
    """memfd_restricted.c by C. Peng; its fstat is asked below, where the trees disagree."""
    world = World(profile)
    file = world.file(0)
    backend, fd = file.backend, file.fd

    assert errno_of(lambda: file.truncate(P + 1)) == "EINVAL"
    file.truncate(P)
    assert errno_of(lambda: file.truncate(2 * P)) == "EPERM"
    assert errno_of(lambda: backend.read(fd, P)) == errno_of(lambda: backend.write(fd, P)) == "EINVAL"
    assert errno_of(lambda: backend.pread(fd, P, 0)) == errno_of(lambda: backend.pwrite(fd, P, 0)) == "ESPIPE"
    for kind in (MAP_SHARED, MAP_PRIVATE):
        assert errno_of(lambda kind=kind: backend.mmap(fd, P, PROT_READ | PROT_WRITE, kind, 0)) == "ENODEV"  # type: ignore[misc]
    file.allocate(0, 4 * P)
    assert errno_of(lambda: file.punch_hole(P - 1, P)) == "EINVAL"
    assert errno_of(lambda: file.punch_hole(P, P - 1)) == "EINVAL"
    file.punch_hole(P, P)
    assert world.pages(file) == [(0, 1), (2, 1), (3, 1)]


@pytest.mark.parametrize("length", [0, P, 2 * P, P + 1])
def test_a_size_is_set_once_whatever_the_length(length: int) -> None:
    assert errno_of(lambda: World().file(P).truncate(length)) == "EPERM"


def test_size_0_can_be_set_again_and_a_negative_length_is_none() -> None:
    file = World().file(0)
    file.truncate(0)

    assert errno_of(lambda: file.truncate(-P)) == "EINVAL"
    file.truncate(S64_MAX // P * P)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "ended"),
    [
        (PUNCH, -P, P, "EINVAL"),
        (PUNCH, 0, 0, "EINVAL"),
        (2, 0, P, "EOPNOTSUPP"),  # a hole without KEEP_SIZE
        (PUNCH | ZERO, 0, P, "EOPNOTSUPP"),
        (4, 0, P, "EOPNOTSUPP"),
        (128, 0, P, "EOPNOTSUPP"),  # WRITE_ZEROES came later
        (PUNCH | COLLAPSE, 0, P, "EINVAL"),
        (COLLAPSE | INSERT, 0, P, "EINVAL"),
        (COLLAPSE | KEEP, 0, P, "EINVAL"),
        (ZERO, 0, P, "EOPNOTSUPP"),
        (COLLAPSE, 0, P, "EOPNOTSUPP"),
        (INSERT, 0, P, "EOPNOTSUPP"),
        (UNSHARE, 0, P, "EOPNOTSUPP"),
        (KEEP, S64_MAX - P, 2 * P, "EFBIG"),
        (PUNCH, 1 << 40, P, None),  # beyond the size
    ],
)
def test_fallocate_asks_the_generic_layer_of_6_1_then_the_file_then_shmem(
    mode: int, offset: int, length: int, ended: str | None
) -> None:
    file = World().file(4 * P)

    assert errno_of(lambda: file.backend.fallocate(file.fd, mode, offset, length)) == ended


def test_an_allocation_need_not_be_aligned_and_may_make_the_file_larger() -> None:
    world = World()
    file = world.file(P)

    file.allocate(P + 1, P, keep_size=True)
    assert (file.stat().st_size, world.pages(file)) == (P, [(1, 1), (2, 1)])
    file.allocate(5 * P - 1, 2)
    assert file.stat().st_size == 5 * P + 1


def test_what_one_allocation_left_unzeroed_the_next_one_zeroes() -> None:
    world = World()
    file = world.file()
    file.allocate(0, P)
    before = file.model.contents.read(0, 8)

    file.allocate(0, P)

    assert (before, file.model.contents.read(0, 8)) == (STALE, 0)


@pytest.mark.parametrize(
    ("profile", "size", "blocks"), [("restrictedmem", 8 * M2, 8), (UPM, 8 * M2, 8), (V10, 0, 0), (V11C, 0, 0)]
)
def test_fstat_shows_the_inner_file_or_the_outer_one(profile: str, size: int, blocks: int) -> None:
    file = World(profile).file()
    file.allocate(0, P)
    stat = file.stat()

    assert (stat.st_size, stat.st_blocks, stat.st_blksize, stat.st_mode) == (size, blocks, P, 0o100600)


def test_a_file_outlives_its_descriptors_while_a_slot_has_it_and_a_vm_while_a_descriptor_does() -> None:
    world = World()
    file = world.file()
    world.bind(file)
    world.private(0, M2)
    world.vcpu.write(0, 7)
    kept = file.dup()
    file.close()
    world.vcpu.close()
    world.vm.close()

    world.vm = world.kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
    world.vcpu = world.vm.create_vcpu()
    world.bind(kept)
    world.private(0, M2)
    assert world.vcpu.read(0) == 7, "another VM sees the old contents"

    kept.close()
    assert world.vcpu.read(0) == 7
    assert len(world.kvm.model.shmem.files) == 1
    world.vm.delete_region(0)
    assert world.kvm.model.shmem.files == []
    world.kvm.check_invariants()
