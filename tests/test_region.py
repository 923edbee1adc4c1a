"""KVM_SET_USER_MEMORY_REGION and _REGION2: every check, every pair of checks in order, and what a slot may become."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

import pytest
from helpers import (
    GUEST_MEMFD,
    LOG_DIRTY,
    M2,
    PRIVATE,
    READONLY,
    RELEASED,
    RW,
    WITH_MMAP,
    WITH_PRIVATE_MEMORY,
    P,
    Region,
    bindings,
    bound,
    errno_of,
    leaves,
    load,
    memory_fault,
    named,
    slots,
    store,
)

import guestmem
from guestmem.errors import KvmError
from guestmem.model.profiles import V7_2
from guestmem.objects import GuestMemfd, Kvm, Vcpu, Vm
from guestmem.units import GIB, TIB

USER_LIMIT = (1 << 47) - P
GPA_LIMIT = 1 << 40
MAX_PAGES = (1 << 31) - 1
U64 = 1 << 64
GPA = GIB


def vm_type_of(profile: str) -> int:
    """A type that may bind files on that kernel's machine."""
    return 0 if profile == "v6.18" else 1


# -- every check and every pair of them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the table of checks: a request that fails it and nothing before it.

    ``sets`` replaces fields, ``adds`` changes them by a little, so that most pairs can be put into one request.
    """

    number: int
    check: str
    errno: str = "EINVAL"
    sets: dict[str, int] = field(default_factory=dict)
    adds: dict[str, int] = field(default_factory=dict)
    file: str = ""

    def conflicts(self, other: Row) -> bool:
        """One field cannot hold two values."""
        return bool(self.sets.keys() & other.sets.keys()) or bool(self.file and other.file)

    def __str__(self) -> str:
        return f"{self.number}-{self.check}"


TAKEN_GPA = 2 * GIB  # where another slot lies
BOUND = 16 * P  # what another slot has of the file
FILE_SIZE = 20 * P

ROWS = (
    Row(4, "slot-id", sets={"slot": 32764}),
    Row(5, "flags-valid", adds={"flags": 8}),
    Row(6, "size-page-aligned", adds={"size": 1}),
    Row(7, "gpa-page-aligned", adds={"gpa": 1}),
    Row(8, "hva-in-user-space", adds={"userspace_addr": 1}),
    Row(9, "offset-page-aligned", adds={"offset": 1}),
    Row(10, "address-space", adds={"slot": 1 << 16}),
    Row(11, "gpa-no-wrap", sets={"gpa": U64 - 4 * P}),
    Row(12, "slot-page-count", sets={"size": (MAX_PAGES + 1) * P}),
    Row(18, "gpa-free", "EEXIST", sets={"gpa": TAKEN_GPA}),
    Row(20, "fd-open", "EBADF", file="closed"),
    Row(21, "fd-is-guest-memfd", file="memfd"),
    Row(22, "same-vm", file="foreign"),
    Row(23, "binding-in-file", sets={"offset": FILE_SIZE}),
    Row(24, "binding-free", "EEXIST", sets={"offset": BOUND}),
    Row(26, "gpa-mappable", sets={"gpa": GPA_LIMIT}),
)


class World:
    """A VM with a plain slot at TAKEN_GPA, a file of which [BOUND, FILE_SIZE) is bound, and wrong descriptors."""

    def __init__(self, kvm: Kvm, profile: str) -> None:
        vm_type = vm_type_of(profile)
        self.vm, foreign_vm = kvm.create_vm(vm_type), kvm.create_vm(vm_type)
        self.gmem = self.vm.create_guest_memfd(FILE_SIZE)
        foreign = foreign_vm.create_guest_memfd(FILE_SIZE)
        self.files = {"": self.gmem.fd, "foreign": foreign.fd, "memfd": kvm.backend.open_aux("memfd"), "closed": -1}
        Region(slot=8, gpa=TAKEN_GPA, size=16 * P).set(self.vm)
        bound(self.gmem, slot=9, gpa=3 * GIB, size=4 * P, offset=BOUND).set(self.vm)
        self.good = bound(self.gmem, slot=5, gpa=GPA, size=4 * P)

    def state(self) -> object:
        return slots(self.vm), bindings(self.gmem)

    def request(self, *rows: Row) -> Region:
        request = self.good
        for row in rows:
            request = replace(request, **row.sets)
            if row.file:
                request = replace(request, fd=self.files[row.file])
        for row in rows:
            request = replace(request, **{name: getattr(request, name) + by for name, by in row.adds.items()})
        return request

    def refusal(self, request: Region) -> tuple[str, str]:
        before = self.state()
        with pytest.raises(KvmError) as refused:
            request.set(self.vm)
        assert self.state() == before, "a failed call changes nothing"
        return refused.value.check, refused.value.name


@pytest.fixture
def world(kvm: Kvm, profile: str) -> World:
    return World(kvm, profile)


def expected(row: Row, profile: str) -> tuple[str, str]:
    if row.number == 24 and profile in ("v6.12", "v6.18"):
        return row.check, "EINVAL"  # 7.2 tells overlap apart
    return row.check, row.errno


def in_order(profile: str) -> tuple[Row, ...]:
    """7.3 asks last whether the range is free (kvm_gmem_commit_memory_region)."""
    return (*ROWS[:-2], ROWS[-1], ROWS[-2]) if profile == "v7.3" else ROWS


def mappable(row: Row, profile: str) -> Row:
    """The limit of guest-physical addresses is the machine's."""
    return replace(row, sets={"gpa": 1 << 52}) if row.number == 26 and profile == "v6.18" else row


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_request_with_one_defect_is_refused_by_its_row(world: World, profile: str, row: Row) -> None:
    assert world.refusal(world.request(mappable(row, profile))) == expected(row, profile)


@pytest.mark.parametrize("profile", RELEASED)
def test_of_two_defects_the_earlier_row_decides(world: World, profile: str) -> None:
    pairs = [
        (first, second) for first, second in itertools.combinations(in_order(profile), 2) if not first.conflicts(second)
    ]
    assert len(pairs) > 100

    for first, second in pairs:
        request = world.request(mappable(first, profile), mappable(second, profile))
        assert world.refusal(request) == expected(first, profile), f"{first} with {second}"


@pytest.mark.parametrize("profile", RELEASED)
def test_the_request_that_all_rows_vary_is_good(world: World) -> None:
    assert world.good.try_set(world.vm) is None
    assert bindings(world.gmem) == [(0, 4, 5), (16, 20, 9)]


@pytest.mark.parametrize("profile", RELEASED)
def test_out_of_the_file_beats_bound_already(world: World) -> None:
    request = world.good.but(offset=BOUND + P)

    assert world.refusal(request)[0] == "binding-in-file"


def test_gpa_too_high_undoes_the_binding_so_that_the_range_can_be_bound_right_after(world: World) -> None:
    assert world.good.but(gpa=GPA_LIMIT).try_set(world.vm) == "EINVAL"
    assert world.good.try_set(world.vm) is None


# -- flags -------------------------------------------------------------------------------------------------------------


FLAGS = {
    ("v6.12", 0): {0, LOG_DIRTY, READONLY, LOG_DIRTY | READONLY},
    ("v6.12", 1): {0, LOG_DIRTY, READONLY, LOG_DIRTY | READONLY, GUEST_MEMFD},
    ("v6.18", 0): {0, LOG_DIRTY, READONLY, LOG_DIRTY | READONLY, GUEST_MEMFD},
    ("v7.2", 0): {0, LOG_DIRTY, READONLY, LOG_DIRTY | READONLY, GUEST_MEMFD},
    ("v7.2", 1): {0, LOG_DIRTY, READONLY, LOG_DIRTY | READONLY, GUEST_MEMFD},
}


@pytest.mark.parametrize(("profile", "vm_type"), FLAGS)
def test_v2_takes_exactly_these_flags_together(kvm: Kvm, profile: str, vm_type: int) -> None:
    vm = kvm.create_vm(vm_type)
    gmem = vm.create_guest_memfd(4 * P)
    every = [*range(8), *(1 << bit for bit in range(3, 32)), *(GUEST_MEMFD | 1 << bit for bit in range(3, 32))]

    taken = set()
    for flags in every:
        if bound(gmem).but(flags=flags).try_set(vm) is None:
            taken.add(flags)
            vm.delete_region(0)

    assert taken == FLAGS[profile, vm_type]


@pytest.mark.parametrize("profile", RELEASED)
def test_v1_takes_log_dirty_and_readonly_only(vm: Vm) -> None:
    taken = set()
    for flags in [*range(8), *(1 << bit for bit in range(3, 32))]:
        if Region(flags=flags).try_set(vm, version=1) is None:
            taken.add(flags)
            vm.delete_region(0)

    assert taken == {0, LOG_DIRTY, READONLY, LOG_DIRTY | READONLY}


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize("changes", [{"slot": 32764}, {"size": 1}, {"gpa": 1}, {"userspace_addr": 1}])
def test_v1_looks_at_its_flags_before_anything_else(vm: Vm, changes: dict[str, int]) -> None:
    request = Region(flags=GUEST_MEMFD, **{"slot": 0, **changes})

    with pytest.raises(KvmError) as refused:
        request.set(vm, version=1)
    assert refused.value.name == "EINVAL"
    assert named(refused.value) == "v1-flags"


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(("fd", "offset"), [(-1, 1), (9999, U64 - 1), (0, U64 - P)])
def test_without_the_flag_file_and_offset_are_ignored_also_when_nonsensical(vm: Vm, fd: int, offset: int) -> None:
    assert Region(fd=fd, offset=offset).try_set(vm) is None


@pytest.mark.parametrize("profile", RELEASED)
def test_the_pads_are_not_looked_at(vm: Vm) -> None:
    vm.backend.set_user_memory_region2(vm.fd, 0, 0, 0, P, 0x10000, -1, 0, 0xFFFFFFFF, [U64 - 1] * 14)

    assert len(slots(vm)) == 1


@pytest.mark.parametrize("profile", RELEASED)
def test_the_descriptor_is_a_u32(vm: Vm) -> None:
    gmem = vm.create_guest_memfd(4 * P)

    assert bound(gmem).but(fd=gmem.fd + (1 << 32)).try_set(vm) is None


# -- single values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("slot", "ends"),
    [
        (0, None),
        (32763, None),
        (32764, "EINVAL"),
        (32766, "EINVAL"),
        (32767, "EINVAL"),
        (0xFFFF, "EINVAL"),
        (2 << 16, "EINVAL"),
        (0xFFFF << 16, "EINVAL"),
        (0xFFFFFFFF, "EINVAL"),
    ],
)
def test_slot_ids_end_at_32763_and_address_spaces_at_two(vm: Vm, slot: int, ends: str | None) -> None:
    assert Region(slot=slot).try_set(vm) == ends


@pytest.mark.parametrize(
    ("profile", "vm_type", "ends"),
    [
        ("v6.12", 0, None),
        ("v6.12", 1, "EINVAL"),
        ("v6.18", 0, "EINVAL"),
        ("v7.2", 0, None),
        ("v7.2", 1, "EINVAL"),
    ],
)
def test_the_second_address_space_exists_where_smm_is_built_in_and_memory_is_not_private(
    kvm: Kvm, vm_type: int, ends: str | None
) -> None:
    vm = kvm.create_vm(vm_type)
    Region(slot=0).set(vm)

    assert Region(slot=1 << 16).try_set(vm) == ends, "the same frames: the spaces are independent"


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("userspace_addr", "size", "ends"),
    [
        (0, P, None),
        (USER_LIMIT - P, P, None),
        (USER_LIMIT - 4 * P, 4 * P, None),
        (USER_LIMIT - P, 2 * P, "EINVAL"),
        (USER_LIMIT, P, "EINVAL"),
        (1 << 47, P, "EINVAL"),
        (1 << 63, P, "EINVAL"),
        (U64 - P, P, "EINVAL"),
        (U64 - P, 4 * P, "EINVAL"),
        (0x7F << 57 | 0x10000, P, "EINVAL"),  # tagged
        (P + 1, P, "EINVAL"),
        (P - 1, P, "EINVAL"),
    ],
)
def test_the_host_range_must_be_page_aligned_and_end_in_user_space_but_need_not_be_mapped(
    vm: Vm, userspace_addr: int, size: int, ends: str | None
) -> None:
    assert Region(userspace_addr=userspace_addr, size=size).try_set(vm) == ends


@pytest.mark.parametrize(
    ("profile", "limit"), [("v6.12", 1 << 40), ("v7.2", 1 << 40), ("v6.18", 1 << 52), ("next", 1 << 52)]
)
def test_the_last_frame_must_be_one_that_the_mmu_can_map(vm: Vm, limit: int) -> None:
    assert Region(slot=0, gpa=limit - 4 * P).try_set(vm) is None
    assert Region(slot=1, gpa=limit).try_set(vm) == "EINVAL"
    assert Region(slot=1, gpa=limit - 8 * P, size=4 * P).try_set(vm) is None
    assert Region(slot=2, gpa=limit - 12 * P, size=16 * P).try_set(vm) == "EEXIST", "overlap is found first"
    vm.delete_region(0)
    assert Region(slot=2, gpa=limit - 4 * P, size=8 * P).try_set(vm) == "EINVAL", "straddles the limit"


@pytest.mark.parametrize(("gpa", "check"), [(U64 - 4 * P, "gpa-no-wrap"), (U64 - 8 * P, "gpa-mappable")])
def test_a_range_that_ends_exactly_at_2_64_wraps(vm: Vm, gpa: int, check: str) -> None:
    with pytest.raises(KvmError) as refused:
        Region(gpa=gpa).set(vm)
    assert (refused.value.check, refused.value.name) == (check, "EINVAL")


@pytest.mark.parametrize(
    ("offset", "check"),
    [
        (U64 - 4 * P, "offset-page-aligned"),  # the sum is exactly 2**64: a wrap
        (U64 - P, "offset-page-aligned"),
        (U64 - 8 * P, "binding-in-file"),
        (P - 1, "offset-page-aligned"),
    ],
)
def test_the_offset_may_not_wrap_either(vm: Vm, offset: int, check: str) -> None:
    with pytest.raises(KvmError) as refused:
        bound(vm.create_guest_memfd(16 * P), offset=offset).set(vm)
    assert refused.value.check == check


def test_a_slot_has_at_most_2_31_minus_1_pages() -> None:
    machine = replace(V7_2.machine, gpa_bits=52)
    with guestmem.open("model", profile="v7.2", machine=machine) as kvm:
        vm = kvm.create_vm(1)

        assert Region(slot=0, size=(MAX_PAGES + 1) * P).try_set(vm) == "EINVAL"
        assert Region(slot=0, size=MAX_PAGES * P).try_set(vm) is None
        assert Region(slot=1, gpa=8 * TIB, size=MAX_PAGES * P).try_set(vm) is None
        assert Region(slot=2, gpa=8 * TIB - P, size=P).try_set(vm) is None, "the one page between them"


def test_every_one_of_the_32764_ids_can_be_in_use_at_once(vm: Vm) -> None:
    for slot in range(32764):
        vm.set_user_memory_region(slot, gpa=slot * M2, size=M2, userspace_addr=0)

    assert len(slots(vm)) == 32764
    assert Region(slot=32764, gpa=32764 * M2).try_set(vm) == "EINVAL"


@pytest.mark.parametrize("profile", RELEASED)
def test_several_slots_may_show_the_same_host_memory(kvm: Kvm, vm: Vm) -> None:
    hva, vcpu = kvm.anonymous(P), vm.create_vcpu()
    for slot in range(3):
        vm.set_user_memory_region(slot, gpa=slot * GPA, size=P, userspace_addr=hva)

    vcpu.write(GPA, 5)

    assert [vcpu.read(0), vcpu.read(2 * GPA), kvm.read(hva)] == [5, 5, 5]


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("gpa", "size", "ends"),
    [
        (4 * P, 4 * P, "EEXIST"),
        (P, 4 * P, "EEXIST"),
        (7 * P, 4 * P, "EEXIST"),
        (5 * P, P, "EEXIST"),
        (0, 16 * P, "EEXIST"),
        (0, 4 * P, None),
        (8 * P, 4 * P, None),
    ],
)
def test_slots_of_one_address_space_share_no_frame(vm: Vm, gpa: int, size: int, ends: str | None) -> None:
    Region(slot=0, gpa=4 * P, size=4 * P).set(vm)

    assert Region(slot=1, gpa=gpa, size=size).try_set(vm) == ends


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize("version", [1, 2])
def test_the_ioctl_on_another_descriptor_gets_that_descriptors_errno(kvm: Kvm, vm: Vm, version: int) -> None:
    backend = kvm.backend
    vcpu, gmem = vm.create_vcpu(), vm.create_guest_memfd(P)

    def on(fd: int) -> str | None:
        return Region(slot=0xFFFFFFFF, size=1).try_set(Vm(backend, fd), version=version)

    assert [on(kvm.fd), on(vcpu.fd), on(gmem.fd), on(backend.open_aux("memfd")), on(-1)] == [
        "EINVAL",
        "EINVAL",
        "ENOTTY",
        "ENOTTY",
        "EBADF",
    ]


# -- deleting ----------------------------------------------------------------------------------------------------------


def made(vm: Vm) -> tuple[GuestMemfd, Region]:
    """A slot with a file."""
    gmem = vm.create_guest_memfd(4 * P)
    request = bound(gmem, gpa=GPA)
    request.set(vm)
    return gmem, request


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("version", "changes"),
    [
        (1, {"flags": 0}),
        (1, {"flags": READONLY, "gpa": 0, "userspace_addr": 0}),
        (2, {"flags": 0, "fd": -1}),
        (2, {"fd": -1}),  # with the flag, and without a descriptor
        (2, {}),
        (2, {"flags": LOG_DIRTY}),
        (2, {"gpa": 1 << 60, "userspace_addr": USER_LIMIT}),  # not looked at beyond their alignment
        (2, {"offset": 1 << 62}),
    ],
)
def test_size_0_deletes_whatever_the_other_fields_say(vm: Vm, version: int, changes: dict[str, int]) -> None:
    gmem, request = made(vm)
    delete = request.but(size=0, **changes)

    assert delete.try_set(vm, version=version) is None
    assert (slots(vm), bindings(gmem)) == ([], [])
    assert delete.try_set(vm, version=version) == "EINVAL", "there is nothing left to delete"


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    "changes",
    [
        {"gpa": 1},
        {"userspace_addr": 1},
        {"userspace_addr": USER_LIMIT + P},
        {"userspace_addr": 1 << 63},
        {"offset": 1},
        {"flags": GUEST_MEMFD | READONLY},
        {"flags": 8},
        {"slot": 1},  # does not exist
        {"slot": 1 << 17},
    ],
)
def test_a_delete_with_a_defect_of_the_earlier_rows_is_einval_and_leaves_the_slot(
    vm: Vm, changes: dict[str, int]
) -> None:
    gmem, request = made(vm)

    assert request.but(size=0, **changes).try_set(vm) == "EINVAL"
    assert (len(slots(vm)), bindings(gmem)) == (1, [(0, 4, 0)])


@pytest.mark.parametrize("profile", ["v6.12"])
def test_on_6_12_a_default_vm_cannot_even_delete_with_the_flag(default_vm: Vm) -> None:
    Region().set(default_vm)

    assert Region(flags=GUEST_MEMFD, size=0).try_set(default_vm) == "EINVAL"
    assert Region(size=0).try_set(default_vm) is None


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize(("vm_type", "others"), [(0, {}), (1, {"4K": 1})])
def test_deleting_drops_the_slots_mappings_and_on_default_vms_all_of_them(
    kvm: Kvm, vm_type: int, others: dict[str, int]
) -> None:
    vm = kvm.create_vm(vm_type)
    vcpu, hva = vm.create_vcpu(), kvm.anonymous(2 * P)
    vm.set_user_memory_region(0, gpa=0, size=P, userspace_addr=hva)
    vm.set_user_memory_region(1, gpa=GPA, size=P, userspace_addr=hva + P)
    vcpu.write(0, 1)
    vcpu.write(GPA, 2)

    vm.delete_region(0)

    assert leaves(vm) == others
    assert vcpu.read(GPA) == 2


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_attributes_survive_deletion_and_creation(vm: Vm) -> None:
    _, request = made(vm)
    vcpu = vm.create_vcpu()
    vm.set_memory_attributes(GPA, P, PRIVATE)
    store(vcpu, GPA, 7)

    request.but(size=0).set(vm)
    assert load(vcpu, GPA) == memory_fault(GPA)
    request.set(vm)
    assert vcpu.read(GPA) == 7


# -- changing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("flags", "changes", "ends"),
    [
        (0, {}, None),
        (0, {"flags": LOG_DIRTY}, None),
        (LOG_DIRTY, {"flags": 0}, None),
        (READONLY, {"flags": READONLY | LOG_DIRTY}, None),
        (0, {"gpa": 4 * GPA}, None),
        (0, {"gpa": GPA + P}, None),  # over its own old range
        (0, {"gpa": GPA - 3 * P}, None),
        (0, {"gpa": 4 * GPA, "flags": LOG_DIRTY}, None),
        (0, {"gpa": TAKEN_GPA}, "EEXIST"),
        (0, {"gpa": TAKEN_GPA - P}, "EEXIST"),
        (0, {"gpa": 1 << 52}, "EINVAL"),
        (0, {"size": 8 * P}, "EINVAL"),
        (0, {"size": P}, "EINVAL"),
        (0, {"userspace_addr": 0x11000}, "EINVAL"),
        (0, {"flags": READONLY}, "EINVAL"),
        (READONLY, {"flags": 0}, "EINVAL"),
        (READONLY, {"flags": LOG_DIRTY}, "EINVAL"),
        (0, {"size": 8 * P, "gpa": TAKEN_GPA}, "EINVAL"),  # resized and in the way: the size is seen first
        (0, {"userspace_addr": 0x11000, "gpa": TAKEN_GPA}, "EINVAL"),
    ],
)
def test_of_a_plain_slot_only_its_place_and_dirty_logging_may_change(
    vm: Vm, version: int, flags: int, changes: dict[str, int], ends: str | None
) -> None:
    Region(slot=1, gpa=TAKEN_GPA).set(vm)
    old = Region(slot=0, gpa=GPA, flags=flags)
    old.set(vm)
    new = old.but(**changes)

    assert new.try_set(vm, version=version) == ends
    stands = old if ends else new
    assert sorted(slots(vm)) == [
        (0, 0, stands.gpa // P, stands.size // P, stands.flags, stands.userspace_addr),
        (0, 1, TAKEN_GPA // P, 4, 0, 0x10000),
    ]


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"fd": -1},
        {"gpa": 4 * GPA},
        {"gpa": TAKEN_GPA},
        {"size": 8 * P},
        {"offset": P},
        {"flags": 0},
        {"flags": LOG_DIRTY},
        {"flags": READONLY},
    ],
)
def test_a_slot_with_a_file_cannot_be_changed_at_all(vm: Vm, changes: dict[str, int]) -> None:
    gmem, request = made(vm)
    Region(slot=1, gpa=TAKEN_GPA).set(vm)
    before = slots(vm)

    assert request.but(**changes).try_set(vm) == "EINVAL"
    assert (slots(vm), bindings(gmem)) == (before, [(0, 4, 0)])


@pytest.mark.parametrize("profile", RELEASED)
def test_a_plain_slot_cannot_be_given_a_file(vm: Vm) -> None:
    gmem = vm.create_guest_memfd(4 * P)
    Region(gpa=GPA).set(vm)

    assert bound(gmem, gpa=GPA).try_set(vm) == "EINVAL"
    assert bindings(gmem) == []


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_moved_slot_shows_its_host_memory_at_the_new_place_with_the_attributes_of_that_place(
    kvm: Kvm, vm: Vm, vcpu: Vcpu
) -> None:
    hva = kvm.anonymous(4 * P)
    old = Region(gpa=GPA, userspace_addr=hva)
    old.set(vm)
    vcpu.write(GPA + P, 5)
    vm.set_memory_attributes(2 * GPA, P, PRIVATE)

    old.but(gpa=2 * GPA).set(vm)

    assert leaves(vm) == {}
    assert load(vcpu, 2 * GPA) == memory_fault(2 * GPA), "a plain slot has no private memory"
    assert vcpu.read(2 * GPA + P) == 5
    assert load(vcpu, GPA + P)[0].kind == "mmio"


def test_a_move_that_is_refused_late_leaves_the_slot_in_place_without_its_mappings(
    kvm: Kvm, vm: Vm, vcpu: Vcpu
) -> None:
    """kvm_invalidate_memslot comes before kvm_arch_prepare_memory_region finds the new place too high."""
    old = Region(gpa=GPA, userspace_addr=kvm.anonymous(4 * P))
    old.set(vm)
    vcpu.write(GPA, 5)

    assert old.but(gpa=GPA_LIMIT).try_set(vm) == "EINVAL"
    assert leaves(vm) == {}
    assert vcpu.read(GPA) == 5


def test_a_move_recomputes_which_levels_gpa_and_hva_allow(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.model.anonymous(M2, RW, M2, 9)
    region = Region(gpa=GPA, size=M2, userspace_addr=hva)
    region.set(vm)
    vcpu.read(GPA)
    assert leaves(vm) == {"2M": 1}

    region.but(gpa=2 * GPA + P).set(vm)
    vcpu.read(2 * GPA + P)
    assert leaves(vm) == {"4K": 1}

    region.but(gpa=4 * GPA).set(vm)
    vcpu.read(4 * GPA)
    assert leaves(vm) == {"2M": 1}


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_a_file_may_be_bound_at_address_0_without_any_host_memory(default_vm: Vm) -> None:
    gmem = default_vm.create_guest_memfd(4 * P)

    assert errno_of(lambda: bound(gmem, userspace_addr=0).set(default_vm)) is None
