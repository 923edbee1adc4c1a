"""mmap of a guest_memfd: which refusal comes first, what a mapping shows, and when touching it is SIGBUS."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import pytest
from helpers import (
    INIT_SHARED,
    M2,
    MMAP,
    PRIVATE,
    RELEASED,
    RW,
    WITH_MMAP,
    P,
    bound,
    errno_of,
    folios,
    leaves,
    signal_of,
    try_mmap,
)

import guestmem
from guestmem.model.profiles import NEXT
from guestmem.objects import GuestMemfd, Kvm, Mapping, Vm
from guestmem.uapi import (
    MAP_ANONYMOUS,
    MAP_GROWSDOWN,
    MAP_HUGETLB,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_SYNC,
    PROT_EXEC,
    PROT_READ,
    PROT_WRITE,
)

BOTH = MMAP | INIT_SHARED
SIZE = 4 * P
GPA = 1 << 30


@pytest.fixture
def gmem(default_vm: Vm) -> GuestMemfd:
    """A file whose memory is shared and can be mapped."""
    return default_vm.create_guest_memfd(SIZE, BOTH)


@pytest.fixture
def mapping(gmem: GuestMemfd) -> Mapping:
    return gmem.mmap(SIZE)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["v6.12"])
@pytest.mark.parametrize("flags", [MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE])
@pytest.mark.parametrize("prot", [0, PROT_READ, PROT_WRITE, RW, RW | PROT_EXEC, PROT_EXEC])
def test_6_12_maps_no_file_at_all(vm: Vm, flags: int, prot: int) -> None:
    assert try_mmap(vm.create_guest_memfd(SIZE), flags=flags, prot=prot) == "ENODEV"


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("flags", [MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE])
@pytest.mark.parametrize("prot", [0, PROT_READ, RW])
@pytest.mark.parametrize("created", [0, INIT_SHARED])
def test_a_file_without_the_mmap_flag_is_enodev(default_vm: Vm, created: int, flags: int, prot: int) -> None:
    assert try_mmap(default_vm.create_guest_memfd(SIZE, created), flags=flags, prot=prot) == "ENODEV"


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("flags", [MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE])
@pytest.mark.parametrize("created", [0, INIT_SHARED, MMAP, BOTH])
def test_prot_exec_is_eperm_before_anything_the_file_says(default_vm: Vm, created: int, flags: int) -> None:
    gmem = default_vm.create_guest_memfd(SIZE, created)

    assert try_mmap(gmem, flags=flags, prot=PROT_READ | PROT_EXEC) == "EPERM"


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("prot", [0, PROT_READ, RW])
def test_a_private_mapping_is_einval_also_read_only(gmem: GuestMemfd, prot: int) -> None:
    assert try_mmap(gmem, flags=MAP_PRIVATE, prot=prot) == "EINVAL"


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("changes", "errno"),
    [
        ({"length": 0}, "EINVAL"),
        ({"length": 0, "offset": P}, "EINVAL"),
        ({"offset": 1}, "EINVAL"),
        ({"offset": P - 1}, "EINVAL"),
        ({"flags": MAP_SHARED | MAP_HUGETLB}, "EINVAL"),
        ({"flags": 0}, "EINVAL"),  # neither shared nor private
        ({"flags": 4}, "EINVAL"),
        ({"flags": MAP_SHARED_VALIDATE | MAP_SYNC}, "EOPNOTSUPP"),
        ({"flags": MAP_SHARED_VALIDATE | 1 << 20}, "EOPNOTSUPP"),
        ({"length": (1 << 64) - 1}, "ENOMEM"),  # rounds up to 0
        ({"length": 1 << 63}, "ENOMEM"),
        ({"length": 1 << 47}, "ENOMEM"),
        ({"offset": -P}, "EOVERFLOW"),
        ({"offset": (1 << 63) - P}, "EOVERFLOW"),
        ({"offset": (1 << 63) - 2 * P, "length": 2 * P}, "EOVERFLOW"),
    ],
)
def test_the_generic_layer_refuses_before_the_file_is_asked(
    vm: Vm, profile: str, changes: dict[str, int], errno: str
) -> None:
    created = 0 if profile == "v6.12" else MMAP

    assert try_mmap(vm.create_guest_memfd(SIZE, created), **changes) == errno


# Defects in the kernel's order, each with what it asks for; the same argument cannot have two.
STAGES: tuple[tuple[str, dict[str, int]], ...] = (
    ("EINVAL", {"offset": 1}),
    ("EINVAL", {"length": 0}),
    ("ENOMEM", {"length": 1 << 47}),
    ("EOVERFLOW", {"offset": -P}),
    ("EOPNOTSUPP", {"flags": MAP_SHARED_VALIDATE | MAP_SYNC}),
    ("EINVAL", {"flags": 0}),
    ("EPERM", {"prot": PROT_READ | PROT_EXEC}),
)


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("created", [0, BOTH])
@pytest.mark.parametrize(
    ("first", "second"),
    [(a, b) for a, b in itertools.combinations(STAGES, 2) if not a[1].keys() & b[1].keys()],
)
def test_of_two_defects_the_earlier_check_decides(
    default_vm: Vm, created: int, first: tuple[str, dict[str, int]], second: tuple[str, dict[str, int]]
) -> None:
    gmem = default_vm.create_guest_memfd(SIZE, created)

    assert try_mmap(gmem, **{**first[1], **second[1]}) == first[0]


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_prot_exec_beats_a_private_mapping_and_the_missing_flag_beats_it_too(default_vm: Vm, gmem: GuestMemfd) -> None:
    unmappable = default_vm.create_guest_memfd(SIZE)

    assert try_mmap(gmem, flags=MAP_PRIVATE, prot=PROT_EXEC) == "EPERM"
    assert try_mmap(unmappable, flags=MAP_PRIVATE) == "ENODEV"


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_a_mapping_that_may_grow_is_refused_before_the_file_is_asked(default_vm: Vm) -> None:
    assert try_mmap(default_vm.create_guest_memfd(SIZE), flags=MAP_SHARED | MAP_GROWSDOWN) == "EINVAL"


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize(("length", "offset"), [(1, 0), (SIZE, 0), (4 * SIZE, 0), (P, SIZE), (P, 1 << 40)])
def test_length_and_offset_past_the_end_of_the_file_are_accepted(gmem: GuestMemfd, length: int, offset: int) -> None:
    assert try_mmap(gmem, length=length, offset=offset) is None
    assert try_mmap(gmem, length=length, offset=offset, flags=MAP_SHARED_VALIDATE) is None


@pytest.mark.parametrize("profile", RELEASED)
def test_anonymous_memory_needs_no_descriptor(kvm: Kvm) -> None:
    addr = kvm.backend.mmap(-1, P, RW, MAP_PRIVATE | MAP_ANONYMOUS, 0)

    kvm.write(addr, 5)
    assert kvm.read(addr) == 5


# -- what a mapping shows ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_memory_is_allocated_at_the_first_touch_zero_and_shared_by_all_mappings(gmem: GuestMemfd) -> None:
    one, two = gmem.mmap(SIZE), gmem.mmap(2 * P, offset=P)
    assert folios(gmem) == []

    assert one.read(P) == 0
    one.write(P, 0x1234)

    assert two.read(0) == 0x1234
    assert folios(gmem) == [(1, 2, 0)]


def test_guest_and_host_share_the_pages_of_a_mapped_file(default_vm: Vm, gmem: GuestMemfd, mapping: Mapping) -> None:
    vcpu = default_vm.create_vcpu()
    bound(gmem, gpa=GPA, size=SIZE).set(default_vm)

    mapping.write(P, 11)
    assert vcpu.read(GPA + P) == 11
    vcpu.write(GPA + 2 * P, 12)
    assert mapping.read(2 * P) == 12


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_punching_zeroes_the_page_in_every_mapping_and_nothing_else(gmem: GuestMemfd, mapping: Mapping) -> None:
    for page in range(4):
        mapping.write(page * P, page + 1)

    gmem.punch_hole(P, P)

    assert [mapping.read(page * P) for page in range(4)] == [1, 0, 3, 4]
    mapping.write(P, 9)
    assert mapping.read(P) == 9


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("created", [MMAP, BOTH])
@pytest.mark.parametrize(("offset", "outside"), [(0, False), (SIZE - P, False), (SIZE, True), (3 * SIZE - P, True)])
def test_touching_is_sigbus_past_the_end_and_everywhere_without_init_shared(
    default_vm: Vm, created: int, offset: int, outside: bool
) -> None:
    mapping = default_vm.create_guest_memfd(SIZE, created).mmap(3 * SIZE)
    expected = "SIGBUS" if outside or created == MMAP else None

    assert signal_of(lambda: mapping.read(offset)) == expected
    assert signal_of(lambda: mapping.write(offset, 1)) == expected


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize(
    ("prot", "read", "write"),
    [(0, "SIGSEGV", "SIGSEGV"), (PROT_READ, None, "SIGSEGV"), (RW, None, None), (PROT_WRITE, None, None)],
)
def test_the_protection_decides_before_the_page(
    gmem: GuestMemfd, prot: int, read: str | None, write: str | None
) -> None:
    mapping = gmem.mmap(2 * SIZE, prot=prot)

    assert signal_of(lambda: mapping.read(0)) == read
    assert signal_of(lambda: mapping.write(0, 1)) == write
    assert signal_of(lambda: mapping.read(SIZE)) == (read or "SIGBUS")


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_an_unmapped_address_is_sigsegv(kvm: Kvm, mapping: Mapping) -> None:
    mapping.unmap()

    assert signal_of(lambda: kvm.read(mapping.addr)) == "SIGSEGV"


@pytest.mark.parametrize("profile", ["v7.2"])
def test_on_a_vm_with_private_memory_a_mapping_exists_but_every_touch_is_sigbus(vm: Vm) -> None:
    gmem = vm.create_guest_memfd(SIZE, MMAP)
    vcpu = vm.create_vcpu()
    bound(gmem, gpa=GPA, size=SIZE).set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)
    vcpu.write(GPA, 0x5EC4E7)
    mapping = gmem.mmap(SIZE)

    assert {signal_of(partial(mapping.read, offset)) for offset in range(0, SIZE, P)} == {"SIGBUS"}
    assert vcpu.read(GPA) == 0x5EC4E7


# -- other calls on a mapping ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_mprotect_to_exec_is_eacces_and_changes_nothing(kvm: Kvm, mapping: Mapping) -> None:
    assert errno_of(lambda: kvm.backend.mprotect(mapping.addr, SIZE, PROT_READ | PROT_EXEC)) == "EACCES"
    assert signal_of(lambda: mapping.write(0, 1)) is None


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("prot", [PROT_READ, RW])
def test_madv_remove_is_a_punch_hole_also_through_a_mapping_that_is_read_only_now(
    kvm: Kvm, gmem: GuestMemfd, mapping: Mapping, prot: int
) -> None:
    """madvise_remove asks whether the mapping may ever be written (VM_MAYWRITE), not whether it is writable now."""
    mapping.write(P, 5)
    mapping.write(2 * P, 6)
    kvm.backend.mprotect(mapping.addr, SIZE, prot)

    kvm.backend.madvise(mapping.addr + P, P, 9)

    assert [mapping.read(P), mapping.read(2 * P)] == [0, 6]
    assert folios(gmem) == [(1, 3, 0)]


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("advice", [0, 1, 2, 3, 4, 10, 11, 14, 15, 16, 17, 20, 21, 24])
def test_advice_that_returns_0_keeps_the_contents(kvm: Kvm, mapping: Mapping, advice: int) -> None:
    mapping.write(0, 5)

    kvm.backend.madvise(mapping.addr, SIZE, advice)

    assert mapping.read(0) == 5


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("advice", [8, 18, 25, 5, 6, 7, 26, 99, -1])
def test_free_wipe_on_fork_collapse_and_unknown_advice_are_einval(kvm: Kvm, mapping: Mapping, advice: int) -> None:
    mapping.write(0, 5)

    assert errno_of(lambda: kvm.backend.madvise(mapping.addr, SIZE, advice)) == "EINVAL"
    assert mapping.read(0) == 5


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize("advice", [22, 23])
@pytest.mark.parametrize(
    ("created", "length", "errno"), [(BOTH, SIZE, None), (BOTH, SIZE + P, "EFAULT"), (MMAP, P, "EFAULT")]
)
def test_populating_fails_where_a_touch_would_be_sigbus(
    kvm: Kvm, default_vm: Vm, advice: int, created: int, length: int, errno: str | None
) -> None:
    gmem = default_vm.create_guest_memfd(SIZE, created)
    mapping = gmem.mmap(length)

    assert errno_of(lambda: kvm.backend.madvise(mapping.addr, length, advice)) == errno
    assert folios(gmem) == ([(0, 4, 0)] if created == BOTH else [])


@pytest.mark.parametrize("profile", WITH_MMAP)
@pytest.mark.parametrize(("prot", "advice"), [(0, 22), (0, 23), (PROT_READ, 23)])
def test_populating_against_the_protection_is_einval(kvm: Kvm, gmem: GuestMemfd, prot: int, advice: int) -> None:
    mapping = gmem.mmap(SIZE, prot=prot)

    assert errno_of(lambda: kvm.backend.madvise(mapping.addr, SIZE, advice)) == "EINVAL"


def test_madv_dontneed_unmaps_the_guest_too_but_keeps_the_files_page(
    kvm: Kvm, default_vm: Vm, gmem: GuestMemfd, mapping: Mapping
) -> None:
    vcpu = default_vm.create_vcpu()
    default_vm.set_user_memory_region(0, gpa=GPA, size=SIZE, userspace_addr=mapping.addr)
    vcpu.write(GPA, 5)

    kvm.backend.madvise(mapping.addr, SIZE, 4)

    assert leaves(default_vm) == {}
    assert vcpu.read(GPA) == 5


def test_a_mapping_of_the_file_can_itself_be_a_slots_host_memory(
    kvm: Kvm, default_vm: Vm, gmem: GuestMemfd, mapping: Mapping
) -> None:
    vcpu = default_vm.create_vcpu()
    default_vm.set_user_memory_region(0, gpa=GPA, size=SIZE, userspace_addr=mapping.addr)
    vcpu.write(GPA, 5)
    assert mapping.read(0) == 5

    gmem.punch_hole(0, P)

    assert leaves(default_vm) == {}, "the host's mapping went, so the guest's did"
    assert vcpu.read(GPA) == 0


def test_a_huge_file_is_mapped_and_touched_like_any_other() -> None:
    machine = replace(NEXT.machine, gmem_2m=True)
    default_vm = guestmem.open("model", profile="next", machine=machine, in_place=False).create_vm()
    gmem = default_vm.create_guest_memfd(2 * M2, BOTH)
    mapping = gmem.mmap(2 * M2)

    mapping.write(M2 + P, 5)

    assert mapping.read(M2 + P) == 5
    assert folios(gmem) == [(512, 1024, 9)]


@pytest.mark.parametrize("profile", ["v7.3"])
@pytest.mark.parametrize(
    ("accessed", "length", "cut", "at", "stays"),
    [
        (True, 4 * M2, P, 8 * P, False),
        (True, 4 * M2, M2 + P, M2 + 8 * P, False),
        (True, 4 * M2, M2 + P, 2 * M2, True),  # in another huge frame
        (True, 4 * M2, M2, M2 + 8 * P, True),  # a multiple of 2M cuts no huge frame
        (True, M2, P, 8 * P, False),
        (True, M2 - P, P, 8 * P, True),  # the mapping cannot hold a huge page
        (False, 4 * M2, P, 8 * P, True),  # there is no page table yet
    ],
)
def test_cutting_a_mapping_takes_the_huge_frame_around_the_cut_from_guests(
    default_vm: Vm, kvm: Kvm, profile: str, accessed: bool, length: int, cut: int, at: int, stays: bool
) -> None:
    """As KVM counted on 7.3: the leaf of a page that stays mapped goes."""
    gmem = default_vm.create_guest_memfd(length, MMAP)
    mapping = gmem.mmap(length)
    default_vm.set_user_memory_region2(
        0, gpa=0, size=4 * P, userspace_addr=mapping.addr + at, guest_memfd=gmem, guest_memfd_offset=at
    )
    default_vm.create_vcpu().read(0)
    if accessed:
        assert signal_of(mapping.read) == "SIGBUS"

    kvm.backend.munmap(mapping.addr, cut)

    assert leaves(default_vm) == ({"4K": 1} if stays else {})
