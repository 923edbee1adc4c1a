"""The region ioctl of restrictedmem, check by check in its order."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import M2, P, check_of, errno_of
from restricted import EXCLUSIVE, REVISIONS, UPM, V10, V11C, World
from test_vectors_2023 import COLUMNS, K4, VECTORS

import guestmem
from guestmem.units import GIB, MIB

PRIVATE, LOG_DIRTY, READONLY = 4, 1, 2
RULES = {
    "literal": "january-as-written",
    "ctz": "gpa-alignment",
    "fls": "gpa-alignment-fls64",
    "cap": "gpa-page",
    "size": "fits-size",
    "flag": "creation-flags",
}


@pytest.mark.parametrize("profile", REVISIONS)
@pytest.mark.parametrize(
    ("how", "check"),
    [
        ({"slot": 32764}, "slot-id"),
        ({"flags": PRIVATE | 8}, "flags-valid"),
        ({"size": M2 + 1}, "size-page-aligned"),
        ({"gpa": 1}, "gpa-page-aligned"),
        ({"hva": 1}, "hva-in-user-space"),
        ({"offset": 1}, "offset-page-aligned"),
        ({"offset": (1 << 64) - P}, "offset-page-aligned"),
        ({"slot": 2 << 16}, "address-space"),
        ({"gpa": (1 << 64) - P}, "gpa-no-wrap"),
        ({"size": (1 << 31) * P}, "slot-page-count"),
        ({"gpa": 1 << 52}, "gpa-mappable"),
        ({"flags": PRIVATE | READONLY}, None),
        ({"offset": 1 << 40}, None),  # past the end of the file
        ({"hva": 0}, None),
    ],
)
def test_each_argument_is_refused_by_its_check(profile: str, how: dict[str, Any], check: str | None) -> None:
    world = World(profile, "none")
    file = world.file()
    how = {"hva": 0, **how} if how.get("gpa", 0) >> 47 else how

    assert check_of(lambda: world.bind(file, **how)) == check


@pytest.mark.parametrize(
    ("profile", "ended"), [(V10, None), (UPM, "EINVAL"), (V11C, "EINVAL"), ("restrictedmem", "EINVAL")]
)
def test_private_and_log_dirty_go_together_in_v10_only(profile: str, ended: str | None) -> None:
    world = World(profile)

    assert world.try_bind(world.file(), flags=PRIVATE | LOG_DIRTY) == ended


@pytest.mark.parametrize(("profile", "ended"), [(V10, None), (UPM, "EINVAL"), (V11C, "EINVAL")])
def test_a_vm_with_private_memory_has_a_second_address_space_in_v10_only(profile: str, ended: str | None) -> None:
    world = World(profile)

    assert world.try_bind(world.file(), slot=1 << 16) == ended


@pytest.mark.parametrize("profile", REVISIONS)
def test_a_vm_without_private_memory_does_not_know_the_flag(profile: str) -> None:
    world = World(profile)
    plain = world.kvm.create_vm(guestmem.KVM_X86_DEFAULT_VM)

    assert check_of(lambda: world.bind(world.file(), vm=plain)) == "flags-valid"


@pytest.mark.parametrize("profile", REVISIONS)
def test_what_is_no_such_file_is_einval_open_or_not(profile: str) -> None:
    world = World(profile)
    file = world.file()
    for fd in (-1, 999, world.kvm.backend.open_aux("memfd")):
        file.fd = fd
        assert check_of(lambda: world.bind(file)) == "fd-is-restrictedmem"


@pytest.mark.parametrize(
    ("profile", "check"), [(V10, None), (UPM, "offset-is-signed"), ("restrictedmem", "offset-is-signed")]
)
def test_an_offset_of_2_63_is_refused_after_v10(profile: str, check: str | None) -> None:
    world = World(profile, "none")

    assert check_of(lambda: world.bind(world.file(), offset=1 << 63)) == check


def test_the_v1_ioctl_of_upm_takes_the_flag_and_finds_no_file() -> None:
    vm = World(UPM).vm

    assert (
        check_of(lambda: vm.set_user_memory_region(0, gpa=0, size=P, userspace_addr=0, flags=PRIVATE))
        == "fd-is-restrictedmem"
    )


@pytest.mark.parametrize("profile", REVISIONS)
def test_a_request_with_the_flag_changes_no_slot(profile: str) -> None:
    world = World(profile)
    file = world.file()
    world.bind(file)

    assert check_of(lambda: world.bind(file)) == "private-immutable"
    assert check_of(lambda: world.bind(file, gpa=4 * M2)) == "private-immutable"


@pytest.mark.parametrize("profile", REVISIONS)
def test_a_request_without_the_flag_turns_a_private_slot_into_a_plain_one_and_nobody_unbinds(profile: str) -> None:
    world = World(profile)
    file = world.file()
    world.bind(file)
    world.private(0, M2)

    world.vm.set_user_memory_region(0, gpa=0, size=M2, userspace_addr=0)

    assert (world.touch(0).kind, world.touch(0).errno) == ("memory_fault", None), "the slot has no file"
    if profile in EXCLUSIVE:
        assert world.try_bind(file, slot=1, gpa=4 * M2) == "EINVAL", "the range belongs to nobody, for ever"
    file.punch_hole(0, M2)
    world.vm.delete_region(0) if profile != V10 else world.vm.set_user_memory_region(0, gpa=0, size=0, userspace_addr=0)
    file.close()
    assert len(world.kvm.model.shmem.files) == 1, "the file is never let go"


@pytest.mark.parametrize(
    ("how", "check"),
    [
        ({"userspace_addr": P}, "only-gpa-and-flags-change"),
        ({"size": 2 * M2}, "only-gpa-and-flags-change"),
        ({"flags": READONLY}, "only-gpa-and-flags-change"),
        ({"flags": LOG_DIRTY}, None),
        ({"gpa": 16 * M2}, None),
    ],
)
def test_of_a_slot_without_the_flag_gpa_and_log_can_change(how: dict[str, int], check: str | None) -> None:
    vm = World().vm
    slot = {"gpa": 0, "size": M2, "userspace_addr": 0}
    vm.set_user_memory_region(0, **slot)

    assert check_of(lambda: vm.set_user_memory_region(0, **{**slot, **how})) == check


# -- who may bind what -------------------------------------------------------------------------------------------------


def test_v10_lets_any_number_of_slots_and_vms_have_one_range() -> None:
    world = World(V10)
    file = world.file()
    other = world.kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)

    world.bind(file)
    world.bind(file, slot=1, gpa=4 * M2)
    world.bind(file, vm=other)

    assert len(file.model.observers) == 3


@pytest.mark.parametrize("profile", EXCLUSIVE)
def test_later_one_slot_of_all_vms_has_an_index(profile: str) -> None:
    world = World(profile)
    file = world.file()
    other = world.kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
    world.bind(file, size=2 * M2)

    assert check_of(lambda: world.bind(file, vm=other)) == "range-free"
    world.vm.delete_region(0)
    world.bind(file, vm=other)


@pytest.mark.parametrize(("profile", "ended"), [("restrictedmem", None), (UPM, "EINVAL"), (V11C, "EINVAL")])
@pytest.mark.parametrize(("first", "second"), [(0, M2), (M2, 0)])
def test_neighbours_collide_where_the_end_counts_as_inside(
    profile: str, ended: str | None, first: int, second: int
) -> None:
    """A. Tng's test of 16 March 2023 on v11.4 needs the fix of 21 February."""
    world = World(profile, "none")
    file = world.file()
    world.bind(file, offset=first)

    assert world.try_bind(file, slot=1, gpa=4 * M2, offset=second) == ended
    assert world.try_bind(file, slot=2, gpa=6 * M2, offset=6 * M2) is None


def test_a_slot_that_cannot_be_mapped_binds_nothing() -> None:
    world = World()
    file = world.file()

    assert check_of(lambda: world.bind(file, gpa=1 << 52, hva=0)) == "gpa-mappable"
    assert file.model.observers == []
    assert not list(file.model.ranges)


# -- the alignment rules of 2023 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", [column for column in COLUMNS if column in RULES])
@pytest.mark.parametrize(("offset", "gpa", "size", "answers", "agree"), VECTORS)
def test_each_rule_refuses_on_the_system_what_its_mail_refuses(
    column: str, offset: int, gpa: int, size: int, answers: str, agree: str
) -> None:
    world = World("restrictedmem", RULES[column])
    file = world.file(0, page_size=2 * MIB)

    expected = "EINVAL" if answers[COLUMNS.index(column)] == "E" else None
    assert world.try_bind(file, gpa=gpa, size=size, offset=offset) == expected


def test_the_rule_of_v11c_comes_before_the_file_and_is_asked_of_deletions_too() -> None:
    world = World(V11C)
    file = world.file()
    world.bind(file)
    file.fd = -1

    assert check_of(lambda: world.bind(file, gpa=M2, offset=P, slot=1)) == "rule:gpa-alignment"
    assert check_of(lambda: world.bind(file, size=0, gpa=M2, offset=P)) == "rule:gpa-alignment"
    assert check_of(lambda: world.bind(file, size=0)) is None


def test_the_rule_that_looks_at_the_file_comes_after_it() -> None:
    world = World()
    file = world.file(page_size=M2)

    assert check_of(lambda: world.bind(file, offset=P)) == "rule:creation-flags"
    file.fd = -1
    assert check_of(lambda: world.bind(file, offset=P)) == "fd-is-restrictedmem"


@pytest.mark.parametrize(
    ("rule", "ended"), [("gpa-alignment", None), ("fits-size", "EINVAL"), ("creation-flags", "EINVAL")]
)
def test_the_rules_of_april_refuse_the_layout_of_a_selftest_of_march(rule: str, ended: str | None) -> None:
    """A. Tng, cover.1678926164.git.ackerleytng@google.com: slot i at offset and 4G + i * (2M + 4K)."""
    world = World("restrictedmem", rule)
    file = world.file(0, page_size=2 * MIB)
    step = 2 * MIB + K4

    assert world.try_bind(file, gpa=4 * GIB, size=step) is None
    assert errno_of(lambda: world.bind(file, slot=1, gpa=4 * GIB + step, size=step, offset=step)) == ended
