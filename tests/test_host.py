"""The process's own memory: what a userspace_addr means, and munmap, mprotect and madvise on it."""

from __future__ import annotations

from functools import partial

import pytest
from helpers import M2, MMAP, RW, P, Region, errno_of, leaves, load, signal_of, store
from hypothesis import given
from hypothesis import strategies as st

import guestmem
from guestmem.backend import Exit, Statistics
from guestmem.objects import Kvm, Vcpu, Vm
from guestmem.uapi import MAP_ANONYMOUS, MAP_SHARED, PROT_EXEC, PROT_READ, PROT_WRITE

GPA = 1 << 30
U64 = 1 << 64
PROT_SEM = 8
DONTNEED, FREE, REMOVE, POPULATE_READ, POPULATE_WRITE = 4, 8, 9, 22, 23


@pytest.fixture
def buffer(kvm: Kvm) -> int:
    """Four pages of anonymous memory, numbered from 1 by their first word."""
    addr = kvm.anonymous(4 * P)
    for page in range(4):
        kvm.write(addr + page * P, page + 1)
    return addr


def pages(kvm: Kvm, addr: int) -> list[int | str | None]:
    """The first word of each of four pages, or the signal that reading it gives."""
    seen: list[int | str | None] = []
    for page in range(4):
        try:
            seen.append(kvm.read(addr + page * P))
        except guestmem.HostSignal as signal:
            seen.append(signal.signal)
    return seen


# -- anonymous memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("align", [P, M2, 1 << 30])
@pytest.mark.parametrize("size", [P, 3 * P, M2 + P])
def test_anonymous_memory_is_zero_aligned_and_apart_from_all_other(kvm: Kvm, size: int, align: int) -> None:
    one, two = (kvm.anonymous(size, align=align) for _ in range(2))

    assert one % align == two % align == 0
    assert abs(one - two) >= size
    kvm.write(one, 5)
    assert [kvm.read(one), kvm.read(two), kvm.read(one + size - 8)] == [5, 0, 0]


def test_an_address_that_is_mapped_again_reads_zero_again(kvm: Kvm) -> None:
    size = 2 << 40  # so large that the address is used again
    old = kvm.anonymous(size)
    kvm.write(old, 0x5EC4E7)
    kvm.backend.munmap(old, size)

    new = kvm.anonymous(size)

    assert kvm.read(new) == 0
    assert new == old, "the promise is about the same address"


@pytest.mark.parametrize(
    ("prot", "read", "write"),
    [
        (0, "SIGSEGV", "SIGSEGV"),
        (PROT_READ, None, "SIGSEGV"),
        (PROT_WRITE, None, None),  # on x86 what may be written may be read
        (PROT_EXEC, None, "SIGSEGV"),
        (RW, None, None),
    ],
)
def test_the_protection_decides_what_the_process_may_do(
    kvm: Kvm, prot: int, read: str | None, write: str | None
) -> None:
    addr = kvm.anonymous(P, prot=prot)

    assert signal_of(lambda: kvm.read(addr)) == read
    assert signal_of(lambda: kvm.write(addr, 1)) == write


@pytest.mark.parametrize("addr", [0, P, 1 << 40, (1 << 47) - P, 1 << 63])
def test_what_nobody_mapped_is_sigsegv(kvm: Kvm, addr: int) -> None:
    assert signal_of(lambda: kvm.read(addr)) == "SIGSEGV"


def test_memory_is_little_endian(kvm: Kvm, buffer: int) -> None:
    kvm.write(buffer, 0x8877665544332211)

    assert [kvm.read(buffer, size) for size in (1, 2, 4, 8)] == [0x11, 0x2211, 0x44332211, 0x8877665544332211]
    assert kvm.read(buffer + 3, 1) == 0x44


@pytest.mark.parametrize(("size", "align"), [(1, P), (P + 1, P), (P, 1), (100, 1)])
def test_memory_is_handed_out_in_whole_pages(kvm: Kvm, size: int, align: int) -> None:
    addr = kvm.anonymous(size, align=align)
    end = addr + -(-size // P) * P

    assert addr % P == 0
    assert signal_of(lambda: kvm.read(end - 8)) is None
    kvm.backend.munmap(addr, size)
    assert signal_of(lambda: kvm.read(end - 8)) == "SIGSEGV"


def test_no_memory_at_all_is_einval(kvm: Kvm) -> None:
    assert errno_of(lambda: kvm.anonymous(0)) == "EINVAL"


def test_an_address_range_that_is_too_large_is_enomem(kvm: Kvm) -> None:
    assert errno_of(lambda: kvm.anonymous(1 << 47)) == "ENOMEM"


# -- munmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "left"),
    [
        (0, 4 * P, ["SIGSEGV"] * 4),
        (0, P, ["SIGSEGV", 2, 3, 4]),
        (P, 2 * P, [1, "SIGSEGV", "SIGSEGV", 4]),
        (3 * P, P, [1, 2, 3, "SIGSEGV"]),
        (P, 1, [1, "SIGSEGV", 3, 4]),  # rounded up to pages
        (2 * P, 1 << 30, [1, 2, "SIGSEGV", "SIGSEGV"]),  # holes in the range do no harm
    ],
)
def test_munmap_removes_whole_pages_and_leaves_the_rest(
    kvm: Kvm, buffer: int, start: int, length: int, left: list[int | str]
) -> None:
    kvm.backend.munmap(buffer + start, length)

    assert pages(kvm, buffer) == left


@pytest.mark.parametrize(
    ("start", "length"), [(0, 0), (1, P), (P - 1, P), (0, 1 << 47), (0, 1 << 63), (0, U64 - 1), (0, U64 - P)]
)
def test_munmap_of_nothing_of_an_odd_address_or_past_user_space_is_einval_and_changes_nothing(
    kvm: Kvm, buffer: int, start: int, length: int
) -> None:
    assert errno_of(lambda: kvm.backend.munmap(buffer + start, length)) == "EINVAL"
    assert pages(kvm, buffer) == [1, 2, 3, 4]


def test_unmapping_what_is_not_mapped_succeeds(kvm: Kvm) -> None:
    assert errno_of(lambda: kvm.backend.munmap(1 << 40, P)) is None


def test_a_file_mapping_holds_its_file_until_its_last_page_goes(kvm: Kvm, default_vm: Vm) -> None:
    gmem = default_vm.create_guest_memfd(4 * P, MMAP)
    mapping = gmem.mmap(4 * P)
    gmem.close()
    kvm.backend.munmap(mapping.addr + P, 2 * P)
    assert len(default_vm.model.gmems) == 1

    kvm.backend.munmap(mapping.addr, P)
    assert len(default_vm.model.gmems) == 1
    kvm.backend.munmap(mapping.addr + 3 * P, P)
    assert default_vm.model.gmems == []


# -- mprotect ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "length", "left"),
    [
        (0, 4 * P, ["SIGSEGV"] * 4),
        (P, P, [1, "SIGSEGV", 3, 4]),
        (P, P + 1, [1, "SIGSEGV", "SIGSEGV", 4]),
        (0, 0, [1, 2, 3, 4]),
        (2 * P, 0, [1, 2, 3, 4]),  # in the middle of a mapping
    ],
)
def test_mprotect_changes_whole_pages_and_an_empty_range_is_nothing_to_do(
    kvm: Kvm, buffer: int, start: int, length: int, left: list[int | str]
) -> None:
    kvm.backend.mprotect(buffer + start, length, 0)

    assert pages(kvm, buffer) == left


@pytest.mark.parametrize(
    ("start", "length", "prot", "errno"),
    [
        (1, P, 0, "EINVAL"),
        (1, 0, 0, "EINVAL"),
        (0, U64 - 1, 0, "ENOMEM"),  # rounds up to 0
        (0, U64 - P, 0, "ENOMEM"),  # ends before it begins
        (0, U64 - P, 0x10, "ENOMEM"),  # the range before the protection
        (0, P, 0x10, "EINVAL"),
        (0, P, 1 << 30, "EINVAL"),
        (0, P, -1, "EINVAL"),
        (0, 0, 0x10, None),  # an empty range before the protection
        (0, P, RW | PROT_SEM, None),
    ],
)
def test_mprotect_checks_alignment_then_length_then_end_then_protection_before_it_changes_anything(
    kvm: Kvm, buffer: int, start: int, length: int, prot: int, errno: str | None
) -> None:
    assert errno_of(lambda: kvm.backend.mprotect(buffer + start, length, prot)) == errno
    assert pages(kvm, buffer) == [1, 2, 3, 4]


def test_mprotect_stops_at_the_first_hole_and_keeps_what_it_did(kvm: Kvm, buffer: int) -> None:
    kvm.backend.munmap(buffer + 2 * P, P)

    assert errno_of(lambda: kvm.backend.mprotect(buffer, 4 * P, 0)) == "ENOMEM"
    assert pages(kvm, buffer) == ["SIGSEGV", "SIGSEGV", "SIGSEGV", 4]
    assert errno_of(lambda: kvm.backend.mprotect(buffer + 2 * P, 2 * P, 0)) == "ENOMEM"
    assert pages(kvm, buffer)[3] == 4, "a range that begins in a hole changes nothing"


def test_a_protection_that_stays_the_same_costs_the_guest_nothing(kvm: Kvm, vm: Vm, vcpu: Vcpu, buffer: int) -> None:
    """mprotect_fixup returns before any notifier when the flags do not change."""
    Region(gpa=GPA, userspace_addr=buffer).set(vm)
    load(vcpu, GPA)

    kvm.backend.mprotect(buffer, 4 * P, RW)
    assert leaves(vm) == {"4K": 1}

    kvm.backend.mprotect(buffer, 4 * P, PROT_READ)
    assert leaves(vm) == {}


# -- madvise -----------------------------------------------------------------------------------------------------------


def test_dontneed_zeroes_private_pages_for_process_and_guest(kvm: Kvm, vm: Vm, vcpu: Vcpu, buffer: int) -> None:
    Region(gpa=GPA, userspace_addr=buffer).set(vm)
    store(vcpu, GPA + P, 9)

    kvm.backend.madvise(buffer + P, 2 * P, DONTNEED)

    assert pages(kvm, buffer) == [1, 0, 0, 4]
    assert load(vcpu, GPA + P) == [Exit("done", value=0)]


def test_free_drops_the_guests_mapping_and_keeps_the_contents_until_memory_is_short(
    kvm: Kvm, vm: Vm, vcpu: Vcpu, buffer: int
) -> None:
    """MADV_FREE only marks the pages; the model has no reclaim that would take them."""
    Region(gpa=GPA, userspace_addr=buffer).set(vm)
    load(vcpu, GPA)

    kvm.backend.madvise(buffer, 4 * P, FREE)

    assert leaves(vm) == {}
    assert pages(kvm, buffer) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("start", "length", "advice", "errno"),
    [
        (0, P, 99, "EINVAL"),
        (0, 0, 99, "EINVAL"),  # the advice before the range
        (1, P, DONTNEED, "EINVAL"),
        (1, 0, DONTNEED, "EINVAL"),
        (0, 0, DONTNEED, None),
        (P, 0, DONTNEED, None),
        (0, U64 - 1, DONTNEED, "EINVAL"),  # rounds up to 0
        (0, U64 - P, DONTNEED, "EINVAL"),  # ends before it begins
        (0, 4 * P, REMOVE, "EINVAL"),  # no file
        (0, 4 * P, 0, None),
        (0, 4 * P, 18, None),
    ],
)
def test_madvise_checks_advice_alignment_and_end_before_it_does_anything(
    kvm: Kvm, buffer: int, start: int, length: int, advice: int, errno: str | None
) -> None:
    assert errno_of(lambda: kvm.backend.madvise(buffer + start, length, advice)) == errno
    assert pages(kvm, buffer) == [1, 2, 3, 4]


def test_advice_skips_holes_and_says_so_at_the_end(kvm: Kvm, buffer: int) -> None:
    kvm.backend.munmap(buffer + P, P)

    assert errno_of(lambda: kvm.backend.madvise(buffer, 4 * P, DONTNEED)) == "ENOMEM"
    assert pages(kvm, buffer) == [0, "SIGSEGV", 0, 0]


def test_populating_stops_at_the_first_hole(kvm: Kvm, default_vm: Vm) -> None:
    gmem = default_vm.create_guest_memfd(4 * P, MMAP | 2)
    mapping = gmem.mmap(4 * P)
    kvm.backend.munmap(mapping.addr + P, P)

    assert errno_of(lambda: kvm.backend.madvise(mapping.addr, 4 * P, POPULATE_READ)) == "ENOMEM"
    assert list(gmem.model.cache.folios) == [(0, 1, 0)]


@pytest.mark.parametrize(
    ("prot", "read", "write"),
    [(RW, None, None), (PROT_READ, None, "EINVAL"), (0, "EINVAL", "EINVAL")],
)
def test_populating_wants_the_protection_that_an_access_would(
    kvm: Kvm, prot: int, read: str | None, write: str | None
) -> None:
    addr = kvm.anonymous(P, prot=prot)

    assert errno_of(lambda: kvm.backend.madvise(addr, P, POPULATE_READ)) == read
    assert errno_of(lambda: kvm.backend.madvise(addr, P, POPULATE_WRITE)) == write


# -- other files -------------------------------------------------------------------------------------------------------


def test_a_memfd_is_memory_between_its_size_and_its_mappings(kvm: Kvm) -> None:
    backend = kvm.backend
    fd = backend.open_aux("memfd")
    backend.ftruncate(fd, P)
    addr = backend.mmap(fd, 2 * P, RW, MAP_SHARED, 0)
    again = backend.mmap(fd, P, PROT_READ, MAP_SHARED, 0)

    kvm.write(addr, 5)

    assert kvm.read(again) == 5
    assert signal_of(lambda: kvm.read(addr + P)) == "SIGBUS"
    backend.ftruncate(fd, 0)
    assert signal_of(lambda: kvm.read(addr)) == "SIGBUS"
    backend.ftruncate(fd, P)
    assert kvm.read(addr) == 0


def test_a_vcpus_descriptor_maps_its_three_pages_and_no_more(kvm: Kvm, vcpu: Vcpu) -> None:
    addr = kvm.backend.mmap(vcpu.fd, 4 * P, RW, MAP_SHARED, 0)

    assert [signal_of(partial(kvm.read, addr + page * P)) for page in range(4)] == [None, None, None, "SIGBUS"]


def test_the_pages_of_a_vcpu_have_no_holes_to_punch(kvm: Kvm, vcpu: Vcpu) -> None:
    """madvise_remove is vfs_fallocate, and a vCPU's inode is no regular file."""
    addr = kvm.backend.mmap(vcpu.fd, P, RW, MAP_SHARED, 0)

    assert errno_of(lambda: kvm.backend.madvise(addr, P, REMOVE)) == "ENODEV"


# -- slots over host memory --------------------------------------------------------------------------------------------


def test_every_slot_that_shows_a_page_loses_it_when_the_host_does(kvm: Kvm, buffer: int) -> None:
    vms = [kvm.create_vm(vm_type) for vm_type in (0, 1)]
    for vm in vms:
        vcpu = vm.create_vcpu()
        Region(slot=0, gpa=GPA, userspace_addr=buffer).set(vm)
        Region(slot=1, gpa=2 * GPA, userspace_addr=buffer + P, size=2 * P).set(vm)
        for gpa in (GPA, GPA + P, 2 * GPA, 2 * GPA + P):
            load(vcpu, gpa)

    kvm.backend.munmap(buffer + P, P)

    assert [leaves(vm) for vm in vms] == [{"4K": 2}, {"4K": 2}]


@given(
    st.lists(
        st.tuples(st.sampled_from(("munmap", "mprotect", "dontneed", "write")), st.integers(0, 7), st.integers(1, 4)),
        max_size=12,
    )
)
def test_the_guest_sees_what_the_process_would_see(steps: list[tuple[str, int, int]]) -> None:
    with guestmem.open("model") as kvm:
        vm = kvm.create_vm(1)
        vcpu = vm.create_vcpu()
        base = kvm.anonymous(8 * P)
        Region(gpa=GPA, size=8 * P, userspace_addr=base).set(vm)
        contents: list[int | None] = [0] * 8  # None: not mapped
        readable = [True] * 8
        for number, (step, first, count) in enumerate(steps, 1):
            chosen = range(first, min(first + count, 8))
            length = len(chosen) * P
            if step == "munmap":
                kvm.backend.munmap(base + first * P, length)
                for page in chosen:
                    contents[page] = None
            elif step == "dontneed" and all(contents[page] is not None for page in chosen):
                kvm.backend.madvise(base + first * P, length, DONTNEED)
                for page in chosen:
                    contents[page] = 0
            elif step == "mprotect" and all(contents[page] is not None for page in chosen):
                prot = 0 if number % 2 else RW
                kvm.backend.mprotect(base + first * P, length, prot)
                for page in chosen:
                    readable[page] = bool(prot)
            elif step == "write" and contents[first] is not None and readable[first]:
                store(vcpu, GPA + first * P, number)
                contents[first] = number

            for page in range(8):
                value = contents[page]
                exits = load(vcpu, GPA + page * P)
                if value is None or not readable[page]:
                    assert exits == [Exit("unknown", errno="EFAULT")]
                    assert signal_of(partial(kvm.read, base + page * P)) == "SIGSEGV"
                else:
                    assert exits == [Exit("done", value=value)]
                    assert kvm.read(base + page * P) == value
            kvm.check_invariants()


# -- accesses across pages ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [P - 1, P - 4, P - 7])
def test_a_host_access_may_cross_pages(kvm: Kvm, buffer: int, offset: int) -> None:
    kvm.write(buffer + offset, 0x8877665544332211)

    assert kvm.read(buffer + offset) == 0x8877665544332211
    assert kvm.read(buffer + offset + 8) == 0
    assert kvm.read(buffer + 2 * P) == 3


def test_a_store_that_reaches_a_page_it_may_not_write_stores_nothing(kvm: Kvm, buffer: int) -> None:
    kvm.backend.mprotect(buffer + P, P, PROT_READ)

    assert signal_of(lambda: kvm.write(buffer + P - 4, 0xFFFFFFFFFFFFFFFF)) == "SIGSEGV"
    assert kvm.read(buffer + P - 4, 4) == 0
    assert signal_of(lambda: kvm.read(buffer + P - 4)) is None
    kvm.backend.munmap(buffer + P, P)
    assert signal_of(lambda: kvm.read(buffer + P - 4)) == "SIGSEGV"


def test_host_and_guest_store_the_low_bytes_of_a_value(kvm: Kvm, vm: Vm, vcpu: Vcpu, buffer: int) -> None:
    Region(gpa=GPA, userspace_addr=buffer).set(vm)

    kvm.write(buffer, 0x1234, 1)
    store(vcpu, GPA + P, 0x5678, 1)

    assert [kvm.read(buffer), kvm.read(buffer + P)] == [0x34, 0x78]
    assert store(vcpu, 2 * GPA, 0x9ABC, 1)[0].data == "bc"


def test_a_guest_access_across_pages_is_misuse(vcpu: Vcpu) -> None:
    with pytest.raises(ValueError, match="crosses a page"):
        vcpu.write(GPA + P - 4, 1)


# -- the zero page -----------------------------------------------------------------------------------------------------


both = pytest.mark.parametrize("profile", ["v6.12", "v7.2"])


@pytest.fixture
def two_slots(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> tuple[int, int]:
    """Two frames that show one page that was never touched."""
    hva = kvm.anonymous(P)
    for slot, gpa in enumerate((GPA, GPA + P)):
        vm.set_user_memory_region(slot, gpa=gpa, size=P, userspace_addr=hva)
    return GPA, GPA + P


def mapped(vm: Vm) -> int:
    """How many base pages are mapped, the guest's own not counted; known right after an access."""
    assert isinstance(vm.backend, Statistics)
    return vm.mapped_pages().get(P, 0) - vm.backend.boot_pages


@both
def test_a_guests_store_takes_the_zero_page_from_whoever_read_it(
    vm: Vm, vcpu: Vcpu, two_slots: tuple[int, int]
) -> None:
    one, two = two_slots
    assert load(vcpu, one) == [Exit("done", value=0)]
    assert mapped(vm) == 1

    store(vcpu, two, 7)

    assert mapped(vm) == 1
    assert load(vcpu, one) == [Exit("done", value=7)]
    assert mapped(vm) == 2


@both
def test_only_the_first_store_of_the_process_takes_it(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(2 * P)
    vm.set_user_memory_region(0, gpa=GPA, size=2 * P, userspace_addr=hva)
    load(vcpu, GPA)
    for value, left in ((1, 1), (2, 2)):
        kvm.write(hva, value)
        load(vcpu, GPA + P)
        assert mapped(vm) == left
        assert load(vcpu, GPA) == [Exit("done", value=value)]


@both
@pytest.mark.parametrize(("advice", "left"), [(POPULATE_READ, 1), (POPULATE_WRITE, 2), (DONTNEED, 1)])
def test_populating_for_writing_gives_pages_of_their_own_and_dropping_takes_them(
    kvm: Kvm, vm: Vm, vcpu: Vcpu, advice: int, left: int
) -> None:
    hva = kvm.anonymous(2 * P)
    vm.set_user_memory_region(0, gpa=GPA, size=2 * P, userspace_addr=hva)
    if advice == DONTNEED:
        kvm.write(hva, 1)
    kvm.backend.madvise(hva, P, advice)
    load(vcpu, GPA)

    kvm.write(hva, 1)

    load(vcpu, GPA + P)
    assert mapped(vm) == left


@both
def test_memory_that_is_mapped_again_where_it_was_is_the_zero_page_again(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(2 * P)
    kvm.write(hva, 1)
    kvm.backend.munmap(hva, P)
    assert signal_of(partial(kvm.read, hva)) == "SIGSEGV"
    vm.set_user_memory_region(0, gpa=GPA, size=2 * P, userspace_addr=hva)

    assert load(vcpu, GPA)[0].errno == "EFAULT"
    load(vcpu, GPA + P)
    kvm.write(hva + P, 2)
    load(vcpu, GPA + P)
    assert mapped(vm) == 1


@both
def test_shared_memory_has_pages_of_its_own_from_the_start(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.backend.mmap(-1, 2 * P, RW, MAP_SHARED | MAP_ANONYMOUS, 0)
    vm.set_user_memory_region(0, gpa=GPA, size=2 * P, userspace_addr=hva)
    load(vcpu, GPA)

    kvm.write(hva, 1)

    load(vcpu, GPA + P)
    assert mapped(vm) == 2


@both
def test_pre_fault_maps_pages_of_both_kinds(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(8 * P)
    vm.set_user_memory_region(0, gpa=GPA, size=8 * P, userspace_addr=hva)
    for page in (1, 2, 5):
        kvm.write(hva + page * P, page)
    assert vcpu.pre_fault_memory(GPA, 8 * P) == (GPA + 8 * P, 0)

    for page in range(8):
        kvm.write(hva + page * P, 9)

    assert load(vcpu, GPA + P) == [Exit("done", value=9)]
    assert mapped(vm) == 3  # the pages that were the process's own before
