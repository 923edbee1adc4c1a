"""KVM_CREATE_GUEST_MEMFD: flags, sizes, the order of the checks, and the huge pages that only profile next has."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import G1, INIT_SHARED, M2, MMAP, RELEASED, WITH_MMAP, P, bound, check_of, errno_of, try_create_guest_memfd

import guestmem
from guestmem.geometry import GEOMETRIES, Geometry
from guestmem.model.profiles import NEXT
from guestmem.objects import Kvm, Vm
from guestmem.units import KIB, TIB

HUGETLB = 1 << 2
OFFERED = {
    ("v6.12", 0): 0,
    ("v6.12", 1): 0,
    ("v6.18", 0): MMAP | INIT_SHARED,
    ("v7.2", 0): MMAP | INIT_SHARED,
    ("v7.2", 1): MMAP,
    ("v7.3", 0): MMAP | INIT_SHARED,
    ("v7.3", 1): MMAP,
}
LARGEST = (1 << 63) - P


@pytest.mark.parametrize(("profile", "vm_type"), OFFERED)
def test_of_the_64_flag_bits_only_the_offered_ones_are_valid(kvm: Kvm, profile: str, vm_type: int) -> None:
    vm = kvm.create_vm(vm_type)
    offered = OFFERED[profile, vm_type]

    outcomes = {bit: try_create_guest_memfd(vm, P, 1 << bit) for bit in range(64)}

    assert outcomes == {bit: None if offered >> bit & 1 else "EINVAL" for bit in range(64)}


@pytest.mark.parametrize("profile", WITH_MMAP)
def test_offered_flags_may_be_combined_and_init_shared_needs_no_mmap(default_vm: Vm) -> None:
    for flags in (0, MMAP, INIT_SHARED, MMAP | INIT_SHARED):
        assert try_create_guest_memfd(default_vm, P, flags) is None


def test_one_unknown_bit_spoils_the_offered_ones(default_vm: Vm) -> None:
    assert try_create_guest_memfd(default_vm, P, MMAP | INIT_SHARED | HUGETLB) == "EINVAL"


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize("size", [P, 2 * P, M2, M2 + P, 1 << 62, LARGEST])
def test_every_positive_multiple_of_the_page_is_a_size_and_nothing_is_allocated(vm: Vm, size: int) -> None:
    gmem = vm.create_guest_memfd(size)

    stat = gmem.stat()
    assert (stat.st_size, stat.st_blocks) == (size, 0)


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    "size", [0, 1, P - 1, P + 1, M2 - 1, LARGEST - 1, LARGEST + 1, 1 << 63, (1 << 63) + P, (1 << 64) - P, (1 << 64) - 1]
)
def test_zero_odd_and_negative_sizes_are_einval(vm: Vm, size: int) -> None:
    assert try_create_guest_memfd(vm, size) == "EINVAL"


def test_every_size_below_a_page_is_einval(vm: Vm) -> None:
    assert {try_create_guest_memfd(vm, size) for size in range(1, P)} == {"EINVAL"}


@pytest.mark.parametrize(
    ("size", "flags", "check"),
    [
        (0, 1 << 63, "flags-supported"),
        (1, 1 << 63, "flags-supported"),
        (0, 0, "size-positive"),
        ((1 << 63) + 1, 0, "size-positive"),
        (P + 1, 0, "size-aligned"),
    ],
)
def test_flags_are_checked_before_the_sign_and_the_sign_before_the_multiple(
    vm: Vm, size: int, flags: int, check: str
) -> None:
    assert check_of(lambda: vm.create_guest_memfd(size, flags)) == check


@pytest.mark.parametrize("profile", RELEASED)
def test_the_reserved_words_are_not_looked_at(vm: Vm) -> None:
    vm.backend.create_guest_memfd(vm.fd, P, 0, [(1 << 64) - 1] * 6)


@pytest.mark.parametrize("profile", ["v6.12"])
def test_6_12_lets_a_default_vm_create_a_file_that_it_can_never_bind(default_vm: Vm) -> None:
    gmem = default_vm.create_guest_memfd(4 * P)

    assert bound(gmem).try_set(default_vm) == "EINVAL"


@pytest.mark.parametrize("profile", RELEASED)
def test_the_ioctl_on_another_descriptor_gets_that_descriptors_errno(kvm: Kvm, vm: Vm) -> None:
    backend, vcpu, gmem = kvm.backend, vm.create_vcpu(), vm.create_guest_memfd(P)
    others = [backend.open_aux(kind) for kind in ("memfd", "pipe", "eventfd", "devnull")]
    closed = kvm.create_vm()
    closed.close()

    def create(fd: int) -> str | None:
        return errno_of(lambda: backend.create_guest_memfd(fd, P, 0))

    assert create(kvm.fd) == "EINVAL"
    assert create(vcpu.fd) == "EINVAL"
    assert create(gmem.fd) == "ENOTTY"
    assert [create(fd) for fd in others] == ["ENOTTY"] * 4
    assert create(closed.fd) == "EBADF"
    assert create(-1) == "EBADF"


def test_files_are_independent_of_one_another(vm: Vm) -> None:
    one, two = vm.create_guest_memfd(P), vm.create_guest_memfd(2 * P)

    assert (one.stat().st_size, two.stat().st_size) == (P, 2 * P)


# -- profile next ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("vm_type", [0, 1])
def test_every_huge_leaf_size_of_the_geometry_and_no_other_can_be_asked_for(geometry: Geometry, vm_type: int) -> None:
    machine = replace(NEXT.machine, geometry=geometry)
    with guestmem.open("model", profile="next", machine=machine) as kvm:
        vm = kvm.create_vm(vm_type)

        accepted = [order for order in range(256) if with_order(vm, 1 << 62, order) is None]

        assert accepted == list(geometry.orders[1:])


@pytest.mark.parametrize("profile", ["next"])
@pytest.mark.parametrize(
    ("page_size", "size", "ends"),
    [
        (P, P, None),
        (M2, M2, None),
        (M2, 3 * M2, None),
        (M2, M2 - P, "EINVAL"),
        (M2, M2 + P, "EINVAL"),
        (G1, G1 - M2, "EINVAL"),
        (G1, G1, None),
        (G1, (1 << 63) - G1, None),
        (G1, (1 << 63) - P, "EINVAL"),
        (G1, 1 << 63, "EINVAL"),
        (G1, 0, "EINVAL"),
    ],
)
def test_the_size_is_a_positive_multiple_of_the_files_page(vm: Vm, page_size: int, size: int, ends: str | None) -> None:
    assert errno_of(lambda: vm.create_guest_memfd(size, page_size=page_size)) == ends


@pytest.mark.parametrize("profile", RELEASED)
def test_no_released_kernel_takes_a_page_size(vm: Vm) -> None:
    assert errno_of(lambda: vm.create_guest_memfd(G1, page_size=M2)) == "EINVAL"


@pytest.mark.parametrize("profile", [*RELEASED, "v7.4"])
def test_without_huge_pages_what_is_reserved_is_not_looked_at(vm: Vm) -> None:
    assert errno_of(lambda: vm.backend.create_guest_memfd(vm.fd, P, 0, [9] * 6)) is None


@pytest.mark.parametrize("profile", ["next"])
@pytest.mark.parametrize("page_size", [3 * M2, M2 + 1])
def test_a_page_size_that_is_no_power_of_two_is_misuse(vm: Vm, page_size: int) -> None:
    with pytest.raises(ValueError, match="not a power of two"):
        vm.create_guest_memfd(G1, page_size=page_size)


def with_order(vm: Vm, size: int, order: int) -> str | None:
    return errno_of(lambda: vm.backend.create_guest_memfd(vm.fd, size, HUGETLB, [order]))


@pytest.mark.parametrize(
    ("name", "size", "ends"),
    [
        ("arm64-16K", 16 * KIB, None),
        ("arm64-16K", 4 * KIB, "EINVAL"),
        ("arm64-16K", 24 * KIB, "EINVAL"),
        ("arm64-64K", 64 * KIB, None),
        ("arm64-64K", 16 * KIB, "EINVAL"),
        ("riscv64", 4 * KIB, None),
    ],
)
def test_without_a_page_size_the_base_page_of_the_architecture_counts(name: str, size: int, ends: str | None) -> None:
    with guestmem.open("model", profile="next", machine=replace(NEXT.machine, geometry=GEOMETRIES[name])) as kvm:
        assert try_create_guest_memfd(kvm.create_vm(1), size) == ends


def test_a_petabyte_file_of_huge_pages_costs_no_host_page() -> None:
    with guestmem.open("model", profile="next") as kvm:
        kvm.create_vm(1).create_guest_memfd(1024 * TIB, page_size=M2)

        assert kvm.model.pools.used() == {}
