"""fallocate on a guest_memfd: the order of refusals, and what allocating and punching do."""

from __future__ import annotations

import itertools

import pytest
from helpers import (
    KEEP_SIZE,
    M2,
    PRIVATE,
    PUNCH,
    RELEASED,
    RW,
    WITH_PRIVATE_MEMORY,
    P,
    bound,
    errno_of,
    folios,
    leaves,
    load,
    store,
    try_fallocate,
)

from guestmem.backend import Exit
from guestmem.objects import GuestMemfd, Kvm, Vm

S64_MAX = (1 << 63) - 1
END = (1 << 63) - P  # the largest legal end of an aligned range
GPA = 1 << 30
NO_HIDE_STALE, COLLAPSE, ZERO, INSERT, UNSHARE, WRITE_ZEROES = 0x04, 0x08, 0x10, 0x20, 0x40, 0x80


@pytest.fixture
def gmem(vm: Vm) -> GuestMemfd:
    return vm.create_guest_memfd(8 * P)


# Refused by the generic layer (before EFBIG) or by the file (after it); 6.12 differs in one bit.
GENERIC = [
    PUNCH & ~KEEP_SIZE,
    NO_HIDE_STALE,
    NO_HIDE_STALE | KEEP_SIZE,
    COLLAPSE | KEEP_SIZE,
    INSERT | KEEP_SIZE,
    COLLAPSE | INSERT,
    ZERO | UNSHARE,
    PUNCH | ZERO,
    PUNCH | COLLAPSE,
    0x100,
    0x100 | KEEP_SIZE,
    1 << 30,
    -1,
]
OF_FILE = [0, COLLAPSE, INSERT, ZERO, ZERO | KEEP_SIZE, UNSHARE, UNSHARE | KEEP_SIZE]


def refused_by_file(profile: str) -> list[int]:
    return OF_FILE if profile == "v6.12" else [*OF_FILE, WRITE_ZEROES]


def refused_by_generic_layer(profile: str) -> list[int]:
    return [*GENERIC, WRITE_ZEROES | KEEP_SIZE, *([WRITE_ZEROES] if profile == "v6.12" else [])]


@pytest.mark.parametrize("profile", RELEASED)
def test_every_mode_but_allocate_and_punch_is_eopnotsupp(gmem: GuestMemfd, profile: str) -> None:
    modes = refused_by_file(profile) + refused_by_generic_layer(profile)

    assert {mode: try_fallocate(gmem, mode, 0, P) for mode in modes} == dict.fromkeys(modes, "EOPNOTSUPP")


@pytest.mark.parametrize("profile", RELEASED)
def test_of_all_modes_of_one_byte_only_two_are_taken(gmem: GuestMemfd) -> None:
    assert {mode for mode in range(256) if try_fallocate(gmem, mode, 0, P) is None} == {KEEP_SIZE, PUNCH}


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(("offset", "length"), [(-1, P), (-P, P), (0, 0), (0, -1), (P, -P), (-(1 << 63), P), (-1, 0)])
def test_a_range_that_is_not_positive_is_einval_whatever_the_mode(
    gmem: GuestMemfd, profile: str, offset: int, length: int
) -> None:
    modes = [KEEP_SIZE, PUNCH, *refused_by_file(profile), *refused_by_generic_layer(profile)]

    assert {try_fallocate(gmem, mode, offset, length) for mode in modes} == {"EINVAL"}


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("offset", "length"), [(S64_MAX, 1), (S64_MAX, S64_MAX), (END, P), (P, END), (S64_MAX - 1, 2), (1, S64_MAX)]
)
def test_an_end_past_the_largest_offset_is_efbig_between_the_two_kinds_of_mode_errors(
    gmem: GuestMemfd, profile: str, offset: int, length: int
) -> None:
    for mode in (KEEP_SIZE, PUNCH, *refused_by_file(profile)):
        assert try_fallocate(gmem, mode, offset, length) == "EFBIG"
    for mode in refused_by_generic_layer(profile):
        assert try_fallocate(gmem, mode, offset, length) == "EOPNOTSUPP"


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(("offset", "length"), [(1, P), (0, 1), (0, P - 1), (0, P + 1), (P - 1, P), (P // 2, P // 2)])
def test_unaligned_is_einval_for_both_modes_and_comes_after_the_mode(
    gmem: GuestMemfd, profile: str, offset: int, length: int
) -> None:
    assert try_fallocate(gmem, KEEP_SIZE, offset, length) == "EINVAL"
    assert try_fallocate(gmem, PUNCH, offset, length) == "EINVAL"
    for mode in refused_by_file(profile) + refused_by_generic_layer(profile):
        assert try_fallocate(gmem, mode, offset, length) == "EOPNOTSUPP"


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("offset", "length", "allocate"),
    [
        (0, 8 * P, None),
        (7 * P, P, None),
        (7 * P, 2 * P, "EINVAL"),  # partly inside counts as beyond
        (8 * P, P, "EINVAL"),
        (0, 9 * P, "EINVAL"),
        (0, END, "EINVAL"),
        (END - P, P, "EINVAL"),
    ],
)
def test_an_allocation_must_lie_in_the_file_and_a_hole_need_not(
    gmem: GuestMemfd, offset: int, length: int, allocate: str | None
) -> None:
    assert try_fallocate(gmem, KEEP_SIZE, offset, length) == allocate
    assert try_fallocate(gmem, PUNCH, offset, length) is None


# The checks in order, each with an argument that fails it alone: (mode, offset, length), None where it does not matter.
STAGES: tuple[tuple[str, dict[str, int]], ...] = (
    ("EINVAL", {"offset": -1}),
    ("EINVAL", {"length": 0}),
    ("EOPNOTSUPP", {"mode": 0x100}),
    ("EFBIG", {"offset": S64_MAX - P + 1}),
    ("EOPNOTSUPP", {"mode": 0}),
    ("EINVAL", {"length": P + 1}),
    ("EINVAL", {"offset": 8 * P}),
)


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (first, second)
        for first, second in itertools.combinations(STAGES, 2)
        if not first[1].keys() & second[1].keys()  # one argument cannot have two defects
    ],
)
def test_of_two_defects_the_earlier_check_decides(
    gmem: GuestMemfd, first: tuple[str, dict[str, int]], second: tuple[str, dict[str, int]]
) -> None:
    arguments = {"mode": KEEP_SIZE, "offset": 0, "length": P, **first[1], **second[1]}

    assert try_fallocate(gmem, arguments["mode"], arguments["offset"], arguments["length"]) == first[0]


@pytest.mark.parametrize("profile", RELEASED)
def test_a_refused_allocation_allocates_nothing(kvm: Kvm, gmem: GuestMemfd) -> None:
    assert try_fallocate(gmem, KEEP_SIZE, 7 * P, 2 * P) == "EINVAL"
    assert folios(gmem) == []
    assert kvm.model.pools.used() == {}


@pytest.mark.parametrize("profile", RELEASED)
def test_allocating_fills_the_holes_and_touches_no_page_that_is_there(kvm: Kvm, gmem: GuestMemfd) -> None:
    gmem.allocate(2 * P, P)
    gmem.allocate(0, 4 * P)
    gmem.allocate(0, 4 * P)

    assert folios(gmem) == [(0, 4, 0)]
    assert kvm.model.pools.used() == {0: 4}


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_allocating_maps_nothing_and_keeps_contents(vm: Vm, gmem: GuestMemfd) -> None:
    vcpu = vm.create_vcpu()
    bound(gmem, gpa=GPA, size=8 * P).set(vm)
    vm.set_memory_attributes(GPA, 8 * P, PRIVATE)
    store(vcpu, GPA, 7)

    gmem.allocate(0, 8 * P)

    assert leaves(vm) == {"4K": 1}
    assert [vcpu.read(GPA), vcpu.read(GPA + P)] == [7, 0], "fresh memory reads zero"


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_punching_removes_exactly_the_mapped_pages_of_the_range(vm: Vm, gmem: GuestMemfd) -> None:
    vcpu = vm.create_vcpu()
    bound(gmem, gpa=GPA, size=8 * P).set(vm)
    vm.set_memory_attributes(GPA, 8 * P, PRIVATE)
    for page in range(8):
        store(vcpu, GPA + page * P, page + 1)

    gmem.punch_hole(3 * P, 2 * P)

    assert leaves(vm) == {"4K": 6}
    assert folios(gmem) == [(0, 3, 0), (5, 8, 0)]
    assert [vcpu.read(GPA + page * P) for page in range(8)] == [1, 2, 3, 0, 0, 6, 7, 8]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_punching_reaches_every_slot_over_the_range(vm: Vm, gmem: GuestMemfd) -> None:
    vcpu = vm.create_vcpu()
    vm.set_memory_attributes(0, 4 * GPA, PRIVATE)
    bound(gmem, slot=0, gpa=GPA, size=4 * P).set(vm)
    bound(gmem, slot=1, gpa=3 * GPA, size=4 * P, offset=4 * P).set(vm)
    store(vcpu, GPA + 3 * P, 1)
    store(vcpu, 3 * GPA, 2)

    gmem.punch_hole(3 * P, 2 * P)

    assert leaves(vm) == {}
    assert [vcpu.read(GPA + 3 * P), vcpu.read(3 * GPA)] == [0, 0]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_punching_changes_neither_attributes_nor_bindings_nor_the_hva(kvm: Kvm, vm: Vm, gmem: GuestMemfd) -> None:
    vcpu = vm.create_vcpu()
    hva = kvm.anonymous(8 * P)
    bound(gmem, gpa=GPA, size=8 * P, userspace_addr=hva).set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)
    kvm.write(hva, 0x55)
    kvm.write(hva + P, 0x66)
    store(vcpu, GPA, 1)

    gmem.punch_hole(0, 8 * P)

    assert kvm.read(hva) == 0x55, "the private page was never there"
    assert load(vcpu, GPA) == [Exit("done", value=0)], "still private"
    assert load(vcpu, GPA + P) == [Exit("done", value=0x66)], "still shared"
    assert bound(gmem, slot=1, gpa=2 * GPA).try_set(vm) is not None, "still bound"


def test_punching_a_page_of_shared_memory_removes_the_huge_leaf_over_it(kvm: Kvm, vm: Vm) -> None:
    """kvm_gmem_invalidate_begin unmaps the bound frames whatever they show, and a leaf goes as a whole."""
    vcpu = vm.create_vcpu()
    hva = kvm.model.anonymous(2 * M2, RW, M2, 9)
    gmem = vm.create_guest_memfd(2 * M2)
    bound(gmem, gpa=GPA, size=2 * M2, userspace_addr=hva).set(vm)
    store(vcpu, GPA, 1)
    store(vcpu, GPA + M2, 2)
    assert leaves(vm) == {"2M": 2}

    gmem.punch_hole(P, P)

    assert leaves(vm) == {"2M": 1}
    assert [vcpu.read(GPA), vcpu.read(GPA + M2)] == [1, 2], "shared memory lives in the hva"


@pytest.mark.parametrize("how", ["punch", "close", "poison"])
def test_a_slot_of_the_second_address_space_costs_the_first_one_nothing(kvm: Kvm, default_vm: Vm, how: str) -> None:
    """kvm_tdp_mmu_unmap_gfn_range looks at the roots of the slot's own address space."""
    vcpu, gmem = default_vm.create_vcpu(), default_vm.create_guest_memfd(P)
    default_vm.set_user_memory_region(0, gpa=GPA, size=P, userspace_addr=kvm.anonymous(P))
    bound(gmem, slot=1 << 16, gpa=GPA, size=P).set(default_vm)
    gmem.allocate(0, P)
    store(vcpu, GPA, 1)

    if how == "punch":
        gmem.punch_hole(0, P)
    elif how == "poison":
        gmem.poison(0)
    else:
        gmem.close()

    assert leaves(default_vm) == {"4K": 1}


@pytest.mark.parametrize("profile", RELEASED)
def test_other_descriptors_answer_fallocate_in_the_generic_layers_order(kvm: Kvm, vm: Vm, profile: str) -> None:
    backend = kvm.backend

    def fallocate(fd: int, mode: int = KEEP_SIZE, offset: int = 0, length: int = P) -> str | None:
        return errno_of(lambda: backend.fallocate(fd, mode, offset, length))

    vcpu, eventfd, null = vm.create_vcpu(), backend.open_aux("eventfd"), backend.open_aux("devnull")
    pipe, memfd = backend.open_aux("pipe"), backend.open_aux("memfd")
    assert {fallocate(fd) for fd in (kvm.fd, vm.fd, vcpu.fd, eventfd, null)} == {"ENODEV"}
    assert {fallocate(fd, offset=S64_MAX) for fd in (kvm.fd, vm.fd, null)} == {"ENODEV"}, "before EFBIG"
    assert {fallocate(fd, mode=0x100) for fd in (kvm.fd, vm.fd, null)} == {"EOPNOTSUPP"}, "after the mode"
    assert fallocate(pipe) == "EBADF", "the read end is not open for writing"
    assert fallocate(pipe, length=0) == "EINVAL"
    assert fallocate(memfd) is None
    assert fallocate(memfd, mode=0) is None
