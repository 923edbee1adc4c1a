"""Memory failure in a guest_memfd: the page stays in the file, is mapped nowhere, and says EHWPOISON."""

from __future__ import annotations

import pytest
from helpers import (
    INIT_SHARED,
    KEEP_SIZE,
    MMAP,
    PRIVATE,
    P,
    bound,
    errno_of,
    folios,
    leaves,
    load,
    memory_fault,
    signal_of,
    store,
    try_fallocate,
    try_pre_fault,
)

from guestmem.backend import Exit
from guestmem.objects import GuestMemfd, Kvm, Vcpu, Vm
from guestmem.uapi import MADV_DONTNEED

GPA = 1 << 30
SIZE = 4 * P


@pytest.fixture
def gmem(default_vm: Vm) -> GuestMemfd:
    """A mapped file of a default VM, bound at GPA, as the verified cases had it."""
    gmem = default_vm.create_guest_memfd(SIZE, MMAP | INIT_SHARED)
    bound(gmem, gpa=GPA, size=SIZE).set(default_vm)
    return gmem


@pytest.fixture
def vcpu(default_vm: Vm) -> Vcpu:
    return default_vm.create_vcpu()


@pytest.mark.parametrize("rw", ["load", "store"])
def test_a_guest_access_fails_with_ehwpoison_and_the_page(gmem: GuestMemfd, vcpu: Vcpu, rw: str) -> None:
    store(vcpu, GPA + P, 5)

    gmem.poison(P + 8)

    exits = load(vcpu, GPA + P + 16) if rw == "load" else store(vcpu, GPA + P + 16)
    assert exits == memory_fault(GPA + P, flags=0, errno="EHWPOISON")


def test_the_mapping_of_the_page_goes_and_its_neighbours_keep_working(
    default_vm: Vm, gmem: GuestMemfd, vcpu: Vcpu
) -> None:
    for page in range(4):
        store(vcpu, GPA + page * P, page + 1)

    gmem.poison(P)

    assert leaves(default_vm) == {"4K": 3}
    assert [vcpu.read(GPA + page * P) for page in (0, 2, 3)] == [1, 3, 4]


def test_a_poisoned_page_stays_in_the_file_so_allocating_over_it_succeeds(gmem: GuestMemfd, vcpu: Vcpu) -> None:
    gmem.allocate(0, SIZE)
    gmem.poison(P)

    assert try_fallocate(gmem, KEEP_SIZE, 0, SIZE) is None
    assert folios(gmem) == [(0, 4, 0)]
    assert load(vcpu, GPA + P) == memory_fault(GPA + P, flags=0, errno="EHWPOISON")


def test_the_host_gets_sigbus_in_old_and_new_mappings(gmem: GuestMemfd) -> None:
    old = gmem.mmap(SIZE)
    old.write(P, 5)

    gmem.poison(P)

    new = gmem.mmap(SIZE)
    assert [signal_of(lambda: old.read(P)), signal_of(lambda: new.read(P))] == ["SIGBUS", "SIGBUS"]
    assert [old.read(0), new.read(2 * P)] == [0, 0]


def test_punching_the_page_out_makes_the_range_usable_again(gmem: GuestMemfd, vcpu: Vcpu) -> None:
    mapping = gmem.mmap(SIZE)
    store(vcpu, GPA + P, 5)
    gmem.poison(P)

    gmem.punch_hole(P, P)

    assert load(vcpu, GPA + P) == [Exit("done", value=0)]
    assert mapping.read(P) == 0
    store(vcpu, GPA + P, 6)
    assert mapping.read(P) == 6


def test_a_mapping_that_had_the_page_keeps_its_marker_when_the_page_is_punched(gmem: GuestMemfd, vcpu: Vcpu) -> None:
    """As run on 7.2 and 7.3: only MADV_DONTNEED, or unmapping, takes the marker away."""
    had, had_not = gmem.mmap(SIZE), gmem.mmap(SIZE)
    had.write(P, 5)
    gmem.poison(P)
    gmem.punch_hole(P, P)

    assert [signal_of(lambda: had.read(P)), signal_of(lambda: had.write(P, 1))] == ["SIGBUS", "SIGBUS"]
    assert (had.read(0), had_not.read(P), load(vcpu, GPA + P)) == (0, 0, [Exit("done", value=0)])

    had.backend.madvise(had.addr + P, P, MADV_DONTNEED)
    had_not.write(P, 7)
    assert had.read(P) == 7


def test_unmapping_takes_the_marker_away(gmem: GuestMemfd) -> None:
    had = gmem.mmap(SIZE)
    had.write(P, 5)
    gmem.poison(P)
    gmem.punch_hole(P, P)
    had.unmap()

    assert gmem.mmap(SIZE).read(P) == 0


def test_pre_faulting_fails_where_it_starts_at_the_page_and_stops_where_it_reaches_it(
    gmem: GuestMemfd, vcpu: Vcpu
) -> None:
    gmem.allocate(0, SIZE)
    gmem.poison(2 * P)

    assert try_pre_fault(vcpu, GPA + 2 * P, 2 * P) == ("EHWPOISON", GPA + 2 * P, 2 * P)
    assert try_pre_fault(vcpu, GPA, SIZE) == (None, GPA + 2 * P, 2 * P)


@pytest.mark.parametrize("profile", ["v6.12", "v7.2"])
def test_a_private_access_carries_the_private_flag(vm: Vm) -> None:
    gmem = vm.create_guest_memfd(SIZE)
    vcpu = vm.create_vcpu()
    bound(gmem, gpa=GPA, size=SIZE).set(vm)
    vm.set_memory_attributes(GPA, SIZE, PRIVATE)
    store(vcpu, GPA, 1)

    gmem.poison(0)

    assert load(vcpu, GPA) == memory_fault(GPA, errno="EHWPOISON")
    assert load(vcpu, GPA + P) == [Exit("done", value=0)]


def test_poison_follows_the_file_to_where_it_is_bound_next(default_vm: Vm, gmem: GuestMemfd, vcpu: Vcpu) -> None:
    gmem.allocate(0, SIZE)
    gmem.poison(P)
    default_vm.delete_region(0)

    bound(gmem, gpa=2 * GPA, size=P, offset=P).set(default_vm)

    assert load(vcpu, 2 * GPA) == memory_fault(2 * GPA, flags=0, errno="EHWPOISON")


def test_nothing_happens_to_a_hole_because_there_is_no_page_to_fail(gmem: GuestMemfd, vcpu: Vcpu) -> None:
    gmem.poison(P)

    assert load(vcpu, GPA + P) == [Exit("done", value=0)]


def test_poisoning_needs_an_open_guest_memfd_and_a_page_of_it(kvm: Kvm, gmem: GuestMemfd) -> None:
    process = kvm.model

    assert errno_of(lambda: process.poison(gmem.fd, SIZE)) == "EINVAL"
    assert errno_of(lambda: process.poison(kvm.fd, 0)) == "EINVAL"
    assert errno_of(lambda: process.poison(-1, 0)) == "EBADF"
