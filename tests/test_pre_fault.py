"""KVM_PRE_FAULT_MEMORY: refusals, progress, and what 6.12 does after a slot was deleted."""

from __future__ import annotations

import pytest
from helpers import (
    GUEST_MEMFD,
    M2,
    MMAP,
    PRIVATE,
    READONLY,
    RELEASED,
    RW,
    WITH_PRIVATE_MEMORY,
    P,
    Region,
    bound,
    folios,
    leaves,
    store,
    try_pre_fault,
)
from hypothesis import given
from hypothesis import strategies as st

import guestmem
from guestmem.objects import GuestMemfd, Kvm, Vcpu, Vm
from guestmem.uapi import PROT_READ

U64 = 1 << 64
GPA = 1 << 30
SIZE = M2 + P


@pytest.fixture
def gmem(kvm: Kvm, vm: Vm) -> GuestMemfd:
    """A file of 2M and a page, bound at GPA over host memory of 2M pages."""
    gmem = vm.create_guest_memfd(SIZE)
    hva = kvm.model.anonymous(2 * M2, RW, M2, 9)
    bound(gmem, gpa=GPA, size=SIZE, userspace_addr=hva).set(vm)
    return gmem


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("gpa", "size", "flags"),
    [
        (GPA, P, 1),
        (GPA, P, 1 << 63),
        (GPA + 1, P, 0),
        (GPA, P - 1, 0),
        (GPA, 1, 0),
        (GPA, 0, 0),
        (0, 0, 0),
        (U64 - P, P, 0),  # ends at 2**64
        (U64 - P, 2 * P, 0),
        (P, U64 - P, 0),
        (GPA + 1, 0, 1),
    ],
)
def test_flags_odd_and_empty_and_wrapping_ranges_are_einval_and_come_back_unchanged(
    vm: Vm, vcpu: Vcpu, gpa: int, size: int, flags: int
) -> None:
    assert try_pre_fault(vcpu, gpa, size, flags) == ("EINVAL", gpa, size)


@pytest.mark.parametrize("profile", ["v6.18"])
@pytest.mark.parametrize("gpa", [GPA, 0, 1 << 60])
def test_with_shadow_paging_every_valid_range_is_eopnotsupp(vm: Vm, vcpu: Vcpu, gpa: int) -> None:
    Region(gpa=GPA).set(vm)

    assert try_pre_fault(vcpu, gpa, P) == ("EOPNOTSUPP", gpa, P)


@pytest.mark.parametrize("profile", RELEASED)
def test_the_ioctl_on_another_descriptor_gets_that_descriptors_errno(kvm: Kvm, vm: Vm) -> None:
    fds = (kvm.fd, vm.fd, vm.create_guest_memfd(P).fd, kvm.backend.open_aux("memfd"), -1)

    ends = [try_pre_fault(Vcpu(kvm.backend, fd), 1, 1, 1) for fd in fds]

    assert ends == [(errno, 1, 1) for errno in ("EINVAL", "ENOTTY", "ENOTTY", "ENOTTY", "EBADF")]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize(
    ("gpa", "size", "ends"),
    [
        (GPA, M2, (None, GPA + M2, 0)),
        (GPA, SIZE, (None, GPA + SIZE, 0)),
        (GPA + M2, 2 * P, (None, GPA + SIZE, P)),  # the first call does one page
        (GPA + SIZE, P, ("ENOENT", GPA + SIZE, P)),  # the next one says why
        (GPA - P, 2 * P, ("ENOENT", GPA - P, 2 * P)),
        (GPA + P, P, (None, GPA + 2 * P, 0)),
        (1 << 45, P, ("ENOENT", 1 << 45, P)),  # beyond what the MMU can map
        (U64 - 2 * P, P, ("ENOENT", U64 - 2 * P, P)),
    ],
)
@pytest.mark.parametrize("private", [False, True])
def test_progress_is_told_by_gpa_and_size_and_an_error_only_before_any(
    vm: Vm, vcpu: Vcpu, gmem: GuestMemfd, gpa: int, size: int, ends: tuple[str | None, int, int], private: bool
) -> None:
    if private:
        vm.set_memory_attributes(GPA, SIZE, PRIVATE)

    assert try_pre_fault(vcpu, gpa, size) == ends


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_private_page_without_a_slot_is_efault_and_a_shared_one_enoent(vm: Vm, vcpu: Vcpu) -> None:
    vm.set_memory_attributes(GPA, P, PRIVATE)

    assert try_pre_fault(vcpu, GPA, P) == ("EFAULT", GPA, P)
    assert try_pre_fault(vcpu, GPA + P, P) == ("ENOENT", GPA + P, P)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_host_memory_that_is_not_there_is_efault(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(4 * P)
    Region(gpa=GPA, size=4 * P, userspace_addr=hva).set(vm)
    kvm.backend.munmap(hva + 2 * P, 2 * P)

    assert try_pre_fault(vcpu, GPA + 2 * P, P) == ("EFAULT", GPA + 2 * P, P)
    assert try_pre_fault(vcpu, GPA, 4 * P) == (None, GPA + 2 * P, 2 * P)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize("what", ["read-only slot", "read-only host memory"])
def test_it_faults_as_a_read_so_what_may_only_be_read_works(kvm: Kvm, vm: Vm, vcpu: Vcpu, what: str) -> None:
    prot = RW if what == "read-only slot" else PROT_READ
    flags = READONLY if what == "read-only slot" else 0
    Region(gpa=GPA, size=4 * P, userspace_addr=kvm.anonymous(4 * P, prot=prot), flags=flags).set(vm)

    assert try_pre_fault(vcpu, GPA, 4 * P) == (None, GPA + 4 * P, 0)
    assert leaves(vm) == {"4K": 4}


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_one_page_of_a_huge_range_maps_the_huge_page(vm: Vm, vcpu: Vcpu, gmem: GuestMemfd) -> None:
    assert try_pre_fault(vcpu, GPA + 3 * P, P) == (None, GPA + 4 * P, 0)
    assert leaves(vm) == {"2M": 1}


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_pages_that_are_mapped_already_count_as_progress(vm: Vm, vcpu: Vcpu, gmem: GuestMemfd) -> None:
    vm.set_memory_attributes(GPA, SIZE, PRIVATE)
    for _ in range(2):
        assert try_pre_fault(vcpu, GPA, SIZE) == (None, GPA + SIZE, 0)
        assert leaves(vm) == {"4K": 513}
        assert folios(gmem) == [(0, 513, 0)]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_it_takes_each_page_from_where_an_access_would(kvm: Kvm, vm: Vm, vcpu: Vcpu, gmem: GuestMemfd) -> None:
    vm.set_memory_attributes(GPA + P, 2 * P, PRIVATE)

    assert try_pre_fault(vcpu, GPA, 4 * P) == (None, GPA + 4 * P, 0)
    assert folios(gmem) == [(1, 3, 0)]
    assert leaves(vm) == {"4K": 4}


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_range_over_two_slots_goes_on_into_the_second_and_stops_at_the_hole_after_it(
    kvm: Kvm, vm: Vm, vcpu: Vcpu
) -> None:
    hva = kvm.anonymous(4 * P)
    Region(slot=0, gpa=GPA, size=2 * P, userspace_addr=hva).set(vm)
    Region(slot=1, gpa=GPA + 2 * P, size=2 * P, userspace_addr=hva).set(vm)

    assert try_pre_fault(vcpu, GPA, 8 * P) == (None, GPA + 4 * P, 4 * P)


def test_a_file_with_the_mmap_flag_is_filled_for_shared_pages_too(vm: Vm, vcpu: Vcpu) -> None:
    gmem = vm.create_guest_memfd(4 * P, MMAP)
    bound(gmem, gpa=GPA).set(vm)

    assert try_pre_fault(vcpu, GPA, 4 * P) == (None, GPA + 4 * P, 0)
    assert folios(gmem) == [(0, 4, 0)]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize("closed", [False, True])
def test_a_slot_that_lost_its_file_or_never_had_one_is_efault_for_private_pages(
    kvm: Kvm, vm: Vm, vcpu: Vcpu, closed: bool
) -> None:
    gmem = vm.create_guest_memfd(4 * P)
    Region(gpa=GPA, flags=GUEST_MEMFD if closed else 0, fd=gmem.fd).set(vm)
    vm.set_memory_attributes(GPA, 4 * P, PRIVATE)
    gmem.close()

    assert try_pre_fault(vcpu, GPA, 4 * P) == ("EFAULT", GPA, 4 * P)


def spinning(kvm: Kvm, vm_type: int) -> tuple[Vm, Vcpu]:
    """A vCPU that ran, and then a slot of its VM was deleted."""
    vm = kvm.create_vm(vm_type)
    vcpu = vm.create_vcpu()
    hva = kvm.anonymous(8 * P)
    Region(slot=0, gpa=GPA, userspace_addr=hva).set(vm)
    Region(slot=1, gpa=2 * GPA, userspace_addr=hva + 4 * P).set(vm)
    store(vcpu, GPA, 1)
    vm.delete_region(1)
    return vm, vcpu


@pytest.mark.parametrize(
    ("profile", "vm_type", "ends"),
    [
        ("v6.12", 0, ("EINTR", GPA, P)),  # it would spin until a signal; the model answers at once
        ("v6.12", 1, (None, GPA + P, 0)),
        ("v7.2", 0, (None, GPA + P, 0)),
        ("v7.2", 1, (None, GPA + P, 0)),
    ],
)
def test_6_12_spins_on_the_outdated_root_of_a_default_vm_until_the_vcpu_runs_again(
    kvm: Kvm, vm_type: int, ends: tuple[str | None, int, int]
) -> None:
    _, vcpu = spinning(kvm, vm_type)

    assert try_pre_fault(vcpu, GPA, P) == ends
    store(vcpu, GPA, 2)
    assert try_pre_fault(vcpu, GPA, P) == (None, GPA + P, 0)


@pytest.mark.parametrize("profile", ["v6.12"])
def test_the_arguments_are_looked_at_before_the_root(kvm: Kvm) -> None:
    _, vcpu = spinning(kvm, 0)

    assert try_pre_fault(vcpu, GPA, 0) == ("EINVAL", GPA, 0)


@pytest.mark.parametrize("profile", ["v6.12"])
def test_a_vcpu_that_never_ran_has_no_root_to_be_outdated(kvm: Kvm) -> None:
    vm, _ = spinning(kvm, 0)

    assert try_pre_fault(vm.create_vcpu(1), GPA, P) == (None, GPA + P, 0)


@pytest.mark.parametrize("profile", ["v6.12"])
def test_moving_a_slot_outdates_the_root_too(kvm: Kvm, default_vm: Vm) -> None:
    vcpu = default_vm.create_vcpu()
    region = Region(gpa=GPA, userspace_addr=kvm.anonymous(4 * P))
    region.set(default_vm)
    store(vcpu, GPA, 1)

    region.but(gpa=2 * GPA).set(default_vm)

    assert try_pre_fault(vcpu, 2 * GPA, P) == ("EINTR", 2 * GPA, P)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.booleans()), max_size=4),
    st.lists(st.integers(0, 15), max_size=6),
    st.integers(0, 16),
    st.integers(1, 16),
)
def test_it_stops_at_the_first_page_that_a_read_would_not_map(
    slots: list[tuple[int, int, bool]], private: list[int], first: int, count: int
) -> None:
    reachable: dict[int, bool] = {}  # page -> has a file
    with guestmem.open("model", profile="v7.2") as kvm:
        vm = kvm.create_vm(1)
        vcpu = vm.create_vcpu()
        hva = kvm.anonymous(32 * P)
        for slot, (start, pages, with_file) in enumerate(slots):
            if reachable.keys() & set(range(start, start + pages)):
                continue
            request = Region(slot=slot, gpa=start * P, size=pages * P, userspace_addr=hva)
            if with_file:
                request = request.but(flags=GUEST_MEMFD, fd=vm.create_guest_memfd(pages * P).fd)
            request.set(vm)
            reachable.update(dict.fromkeys(range(start, start + pages), with_file))
        for page in private:
            vm.set_memory_attributes(page * P, P, PRIVATE)

        done = first
        while done < first + count and done in reachable and (reachable[done] or done not in private):
            done += 1
        refusal = "EFAULT" if done in private else "ENOENT"

        assert try_pre_fault(vcpu, first * P, count * P) == (
            refusal if done == first else None,
            done * P,
            (first + count - done) * P,
        )
        assert leaves(vm) == ({"4K": done - first} if done > first else {})
        kvm.check_invariants()
