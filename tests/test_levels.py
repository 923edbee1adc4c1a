"""Mapping levels: the verified examples of real kernels, leaf by leaf (docs/kernel-behaviour.md#examples-of-levels)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

import guestmem
from guestmem.backend import Touch
from guestmem.model.checks import observing
from guestmem.model.process import Process
from guestmem.model.profiles import V7_2
from guestmem.uapi import PROT_READ, PROT_WRITE
from guestmem.units import GIB, KIB, MIB

P = 4 * KIB
GPA = 4 * GIB  # aligned to every level
HUGE = {"4K": 0, "2M": 9, "1G": 18}
LOG_DIRTY, READONLY = guestmem.KVM_MEM_LOG_DIRTY_PAGES, guestmem.KVM_MEM_READONLY


@dataclass
class World:
    """A VM with one slot at GPA + gpa_shift over host memory at an aligned address + hva_shift."""

    size: int
    gpa_shift: int = 0
    hva_shift: int = 0
    flags: int = 0
    host_pages: str = "2M"
    gmem_offset: int | None = None
    profile: str = "v7.2"
    private_before: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        self.kvm = guestmem.open("model", profile=self.profile)
        self.vm = self.kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
        self.vcpu = self.vm.create_vcpu()
        process = self.kvm.model
        assert isinstance(process, Process)
        room = self.size + 2 * GIB if self.host_pages == "1G" else self.size + 4 * MIB
        self.hva = process.anonymous(room, PROT_READ | PROT_WRITE, GIB, HUGE[self.host_pages]) + self.hva_shift
        for start, size in self.private_before:
            self.private(start, size)
        gmem = None
        if self.gmem_offset is not None:
            gmem = self.vm.create_guest_memfd(self.size + self.gmem_offset)
        self.vm.set_user_memory_region2(
            0,
            gpa=GPA + self.gpa_shift,
            size=self.size,
            userspace_addr=self.hva,
            flags=self.flags,
            guest_memfd=gmem,
            guest_memfd_offset=self.gmem_offset or 0,
        )

    def private(self, start: int, size: int) -> None:
        """Make bytes of the slot's range private; start counts from the slot's gpa."""
        gpa = GPA + self.gpa_shift + start
        self.vm.set_memory_attributes(gpa, size, guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def shared(self, start: int, size: int) -> None:
        """Make them shared again."""
        self.vm.set_memory_attributes(GPA + self.gpa_shift + start, size, 0)

    def leaves(self) -> dict[str, int]:
        """Touch every page that nothing maps yet; the leaves by size."""
        stage2 = self.vm.model.stage2
        start, end = (GPA + self.gpa_shift) // P, (GPA + self.gpa_shift + self.size) // P
        gfn = start
        while gfn < end:
            mapped = stage2.leaves.run_at(gfn)
            if mapped is None:
                self.vcpu.touch(Touch(gfn * P, "r", 8))
                mapped = stage2.leaves.run_at(gfn)
            gfn = gfn + 1 if mapped is None else mapped[1]
        self.kvm.check_invariants()
        return self.now()

    def now(self) -> dict[str, int]:
        """The leaves by size, without touching anything."""
        vm = self.vm.model
        return {vm.geometry.name_of(order): count for order, count in vm.stage2.count().items()}


@pytest.mark.parametrize("profile", ["v6.12", "v7.2"])
@pytest.mark.parametrize(
    ("world", "expected"),
    [
        ({"size": 8 * MIB}, {"2M": 4}),
        ({"size": 6 * MIB, "hva_shift": P}, {"4K": 1536}),
        ({"size": 4 * MIB, "gpa_shift": P, "hva_shift": P}, {"4K": 512, "2M": 1}),
        ({"size": 4 * MIB - P, "gpa_shift": P, "hva_shift": P}, {"4K": 511, "2M": 1}),
        ({"size": 2 * MIB - P}, {"4K": 511}),
        ({"size": 2 * MIB + P}, {"2M": 1, "4K": 1}),
        ({"size": 4 * MIB, "gpa_shift": MIB, "hva_shift": MIB}, {"4K": 512, "2M": 1}),
        ({"size": 2 * MIB, "flags": READONLY}, {"2M": 1}),
        ({"size": 2 * MIB, "flags": LOG_DIRTY}, {"4K": 512}),
        ({"size": 2 * MIB, "host_pages": "4K"}, {"4K": 512}),
        ({"size": 4 * MIB, "gmem_offset": 0}, {"2M": 2}),
        ({"size": 2 * MIB, "gmem_offset": P}, {"2M": 1}),
        ({"size": GIB, "host_pages": "1G"}, {"1G": 1}),
        ({"size": GIB, "host_pages": "1G", "gpa_shift": 2 * MIB}, {"2M": 512}),
        ({"size": GIB - P, "host_pages": "1G"}, {"2M": 511, "4K": 511}),
    ],
)
def test_a_slot_is_mapped_by_the_leaves_a_real_kernel_uses(
    profile: str, world: dict[str, int], expected: dict[str, int]
) -> None:
    assert World(profile=profile, **world).leaves() == expected  # type: ignore[arg-type]


def test_one_private_page_keeps_only_its_own_range_small_and_sharing_it_again_brings_the_huge_leaf_back() -> None:
    world = World(4 * MIB, gmem_offset=0)

    world.private(P, P)
    assert world.leaves() == {"4K": 512, "2M": 1}

    world.shared(P, P)
    assert world.leaves() == {"2M": 2}


def test_a_wholly_private_range_is_mapped_by_base_pages_because_released_files_have_no_huge_folios() -> None:
    world = World(4 * MIB, gmem_offset=0)

    world.private(0, 2 * MIB)

    assert world.leaves() == {"4K": 512, "2M": 1}


def test_private_memory_across_two_ranges_makes_both_small() -> None:
    world = World(4 * MIB, gmem_offset=0)

    world.private(MIB, 2 * MIB)

    assert world.leaves() == {"4K": 1024}


def test_a_private_page_of_a_slot_without_a_file_cannot_be_mapped_and_keeps_its_range_small() -> None:
    world = World(4 * MIB)

    world.private(P, P)

    assert world.leaves() == {"4K": 511, "2M": 1}


def test_attributes_set_before_the_slot_count_like_those_set_after() -> None:
    assert World(4 * MIB, gmem_offset=0, private_before=((P, P),)).leaves() == {"4K": 512, "2M": 1}


def test_a_private_page_outside_the_slot_has_no_influence() -> None:
    world = World(3 * MIB, gpa_shift=MIB, hva_shift=MIB, gmem_offset=0, private_before=((-P, P),))

    assert world.leaves() == {"4K": 256, "2M": 1}


def test_one_private_page_in_a_gigabyte_leaves_the_other_2m_ranges_huge() -> None:
    world = World(GIB, host_pages="1G", gmem_offset=0)

    world.private(2 * MIB, P)
    assert world.leaves() == {"2M": 511, "4K": 512}

    world.shared(2 * MIB, P)
    assert world.leaves() == {"1G": 1}


def test_a_private_2m_range_in_a_gigabyte_forbids_the_gigabyte_until_it_is_shared_again() -> None:
    world = World(GIB, host_pages="1G", gmem_offset=0)

    world.private(2 * MIB, 2 * MIB)
    assert world.leaves() == {"2M": 511, "4K": 512}

    world.shared(2 * MIB, 2 * MIB)
    assert world.leaves() == {"1G": 1}


@pytest.mark.parametrize(("profile", "after"), [("v6.12", {}), ("v7.2", {"2M": 1})])
def test_dirty_logging_splits_at_once_and_newer_kernels_also_restore_at_once(
    profile: str, after: dict[str, int]
) -> None:
    world = World(2 * MIB, profile=profile)
    assert world.leaves() == {"2M": 1}

    region = {"gpa": GPA, "size": 2 * MIB, "userspace_addr": world.hva}
    world.vm.set_user_memory_region(0, flags=LOG_DIRTY, **region)
    assert world.now() == {"4K": 512}

    world.vm.set_user_memory_region(0, flags=0, **region)
    assert world.now() == after
    assert world.leaves() == {"2M": 1}


# -- each limit by itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["v6.12", "v7.2"])
@pytest.mark.parametrize(
    ("world", "expected"),
    [
        ({"size": 6 * MIB, "gpa_shift": P}, {"4K": 1536}),  # the same as hva + P: all entries of the level
        ({"size": 4 * MIB, "gpa_shift": 2 * MIB}, {"2M": 2}),  # congruent modulo 2M is enough
        ({"size": 4 * MIB, "hva_shift": 2 * MIB}, {"2M": 2}),
        ({"size": P}, {"4K": 1}),
        ({"size": 2 * GIB, "host_pages": "1G"}, {"1G": 2}),
        ({"size": GIB, "host_pages": "2M"}, {"2M": 512}),  # the host has no 1G page there
        ({"size": GIB + 2 * MIB + P, "host_pages": "1G"}, {"1G": 1, "2M": 1, "4K": 1}),
        ({"size": GIB, "host_pages": "1G", "hva_shift": 2 * MIB}, {"2M": 512}),
        ({"size": GIB, "host_pages": "1G", "gpa_shift": 2 * MIB, "hva_shift": 2 * MIB}, {"2M": 512}),
        ({"size": 2 * GIB, "host_pages": "1G", "gpa_shift": P, "hva_shift": P}, {"4K": 512, "2M": 511, "1G": 1}),
        ({"size": 4 * MIB, "flags": READONLY | LOG_DIRTY}, {"4K": 1024}),
        ({"size": 2 * MIB, "gmem_offset": 0, "gpa_shift": P, "hva_shift": P}, {"4K": 512}),
    ],
)
def test_head_tail_congruence_and_the_hosts_page_limit_each_level(
    profile: str, world: dict[str, int], expected: dict[str, int]
) -> None:
    leaves = World(profile=profile, **world).leaves()  # type: ignore[arg-type]

    assert leaves == {size: expected[size] for size in ("4K", "2M", "1G") if size in expected}


def test_one_touch_maps_the_whole_huge_page() -> None:
    world = World(4 * MIB)

    world.vcpu.read(GPA + 3 * MIB)

    assert world.now() == {"2M": 1}
    run = world.vm.model.stage2.leaves.run_at((GPA + 2 * MIB) // P)
    assert run is not None
    assert run[:2] == ((GPA + 2 * MIB) // P, (GPA + 4 * MIB) // P)


def test_a_bigger_level_replaces_the_smaller_mappings_under_it() -> None:
    world = World(2 * MIB)
    world.private(2 * MIB - P, P)
    for page in range(4):
        world.vcpu.read(GPA + page * P)
    world.shared(2 * MIB - P, P)
    assert world.now() == {"4K": 4}, "only the range that changed was invalidated"

    world.vcpu.read(GPA + 5 * P)

    assert world.now() == {"2M": 1}


@pytest.mark.parametrize(("vm_type", "size"), [(0, 4 * MIB), (1, 4 * MIB)])
def test_shared_faults_of_a_file_that_can_be_mapped_are_limited_by_the_files_pages(vm_type: int, size: int) -> None:
    with guestmem.open("model", profile="v7.2") as kvm:
        vm = kvm.create_vm(vm_type)
        vcpu = vm.create_vcpu()
        hva = kvm.model.anonymous(size, PROT_READ | PROT_WRITE, 2 * MIB, 9)
        gmem = vm.create_guest_memfd(size, guestmem.GUEST_MEMFD_FLAG_MMAP)
        vm.set_user_memory_region2(0, gpa=GPA, size=size, userspace_addr=hva, guest_memfd=gmem)

        vcpu.pre_fault_memory(GPA, size)

        assert vm.model.stage2.count() == {0: size // P}


@pytest.mark.parametrize(("rw", "order"), [("r", 9), ("w", 9), ("x", 0)])
def test_with_the_nx_workaround_only_instruction_fetches_map_base_pages(rw: str, order: int) -> None:
    with guestmem.open("model", machine=replace(V7_2.machine, nx_huge_pages=True)) as kvm:
        vm = kvm.create_vm(0)
        hva = kvm.model.anonymous(2 * MIB, PROT_READ | PROT_WRITE, 2 * MIB, 9)
        vm.set_user_memory_region(0, gpa=GPA, size=2 * MIB, userspace_addr=hva)

        vm.create_vcpu().touch(Touch(GPA, rw, 8 if rw != "x" else 1))  # type: ignore[arg-type]

        assert vm.model.stage2.count() == {order: 1}


@pytest.mark.parametrize("profile", ["v6.12", "v7.2"])
@pytest.mark.parametrize(("private", "expected"), [((0, 2 * MIB), {"2M": 511}), ((GIB - P, P), {"2M": 511, "4K": 511})])
def test_a_plain_slot_cannot_map_its_private_part_and_loses_the_level_above_it(
    profile: str, private: tuple[int, int], expected: dict[str, int]
) -> None:
    world = World(GIB, host_pages="1G", profile=profile)

    world.private(*private)

    assert world.leaves() == {size: expected[size] for size in ("4K", "2M") if size in expected}


@pytest.mark.parametrize("profile", ["v6.12", "v7.2"])
def test_switching_dirty_logging_on_before_the_first_touch_maps_small_and_off_lets_the_next_touch_be_huge(
    profile: str,
) -> None:
    world = World(4 * MIB, profile=profile)
    region = {"gpa": GPA, "size": 4 * MIB, "userspace_addr": world.hva}
    world.vm.set_user_memory_region(0, flags=LOG_DIRTY, **region)
    world.vcpu.read(GPA)
    assert world.now() == {"4K": 1}

    world.vm.set_user_memory_region(0, flags=0, **region)

    assert world.now() == ({} if profile == "v6.12" else {"2M": 1})
    assert world.leaves() == {"2M": 2}


@pytest.mark.parametrize("profile", ["v6.12", "v7.2"])
def test_ending_dirty_logging_leaves_alone_what_could_not_be_huge_anyway(profile: str) -> None:
    world = World(2 * MIB + P, profile=profile, gpa_shift=P, hva_shift=P, host_pages="4K")
    region = {"gpa": GPA + P, "size": 2 * MIB + P, "userspace_addr": world.hva}
    world.vm.set_user_memory_region(0, flags=LOG_DIRTY, **region)
    before = world.leaves()
    assert before == {"4K": 513}

    world.vm.set_user_memory_region(0, flags=0, **region)

    assert world.now() == before


@pytest.mark.parametrize("half", [0, MIB])
def test_a_host_mapping_that_has_lost_a_part_of_the_huge_page_is_mapped_page_by_page(half: int) -> None:
    world = World(2 * MIB)
    world.kvm.backend.munmap(world.hva + half, MIB)

    assert world.leaves() == {"4K": 256}


@pytest.mark.parametrize("profile", ["v6.12", "v7.2"])
def test_the_guest_reads_the_same_memory_through_every_change_of_level(profile: str) -> None:
    world = World(4 * MIB, profile=profile)
    region = {"gpa": GPA, "size": 4 * MIB, "userspace_addr": world.hva}
    pages = (0, 1, 511, 512, 1023)
    for page in pages:
        world.kvm.write(world.hva + page * P, page + 1)

    for flags in (0, LOG_DIRTY, 0, LOG_DIRTY):
        world.vm.set_user_memory_region(0, flags=flags, **region)
        world.kvm.check_invariants()
        assert [world.vcpu.read(GPA + page * P) for page in pages] == [page + 1 for page in pages]
        world.kvm.check_invariants()


@pytest.mark.parametrize("flags", [LOG_DIRTY, 0])
def test_dirty_logging_in_the_second_address_space_leaves_the_first_alone(flags: int) -> None:
    with guestmem.open("model") as kvm:
        vm = kvm.create_vm(0)
        hva = kvm.model.anonymous(2 * MIB, PROT_READ | PROT_WRITE, 2 * MIB, 9)
        first = {"gpa": GPA, "size": 2 * MIB, "userspace_addr": hva}
        vm.set_user_memory_region(0, flags=LOG_DIRTY - flags, **first)
        vm.set_user_memory_region(1 << 16, flags=LOG_DIRTY - flags, **first)
        vm.create_vcpu().read(GPA)
        before = vm.model.stage2.count()

        vm.set_user_memory_region(1 << 16, flags=flags, **first)

        assert vm.model.stage2.count() == before


def test_the_reason_against_each_level_is_told_to_an_observer() -> None:
    world = World(2 * MIB + P, gpa_shift=P, hva_shift=P, host_pages="1G")
    with observing() as walked:
        world.vcpu.read(GPA + P)

    said = [observation.text for observation in walked if observation.name == "no-leaf"]
    assert [text.partition(":")[0] for text in said] == ["1G", "2M"]
    assert all("slot-head" in text for text in said)
