"""KVM_SET_MEMORY_ATTRIBUTES: what is refused, what stays, and which mappings go."""

from __future__ import annotations

from functools import partial

import pytest
from helpers import (
    M2,
    MMAP,
    PRIVATE,
    RW,
    WITH_PRIVATE_MEMORY,
    P,
    bound,
    check_of,
    errno_of,
    leaves,
    load,
    memory_fault,
    store,
    try_set_memory_attributes,
)
from hypothesis import given
from hypothesis import strategies as st

import guestmem
from guestmem.backend import Exit
from guestmem.objects import GuestMemfd, Kvm, Vcpu, Vm

U64 = 1 << 64
GPA = 1 << 30


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize(
    ("address", "size", "ends"),
    [
        (0, P, None),
        (0, 1 << 52, None),
        (1 << 60, P, None),  # far beyond any memslot and any maximum
        (U64 - 2 * P, P, None),
        (0, U64 - P, None),
        (U64 - P, P, "EINVAL"),  # ending exactly at 2**64 wraps
        (U64 - P, 2 * P, "EINVAL"),
        (P, U64 - P, "EINVAL"),
        (0, 0, "EINVAL"),
        (P, 0, "EINVAL"),
        (1, P, "EINVAL"),
        (P - 1, P, "EINVAL"),
        (0, 1, "EINVAL"),
        (0, P - 1, "EINVAL"),
        (0, P + 1, "EINVAL"),
        (P // 2, P // 2, "EINVAL"),
    ],
)
@pytest.mark.parametrize("attributes", [0, PRIVATE])
def test_the_range_is_whole_pages_below_2_64_and_nothing_else_limits_it(
    vm: Vm, address: int, size: int, ends: str | None, attributes: int
) -> None:
    assert try_set_memory_attributes(vm, address, size, attributes) == ends


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_of_the_64_attribute_bits_only_private_exists_and_only_with_private_memory(kvm: Kvm) -> None:
    for vm_type, offered in ((0, set()), (1, {3})):
        vm = kvm.create_vm(vm_type)

        assert {bit for bit in range(64) if try_set_memory_attributes(vm, 0, P, 1 << bit) is None} == offered


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_default_vm_takes_no_attribute_but_lets_none_be_set(default_vm: Vm) -> None:
    assert try_set_memory_attributes(default_vm, 0, P, 0) is None
    assert try_set_memory_attributes(default_vm, 0, P, PRIVATE) == "EINVAL"
    assert try_set_memory_attributes(default_vm, 0, 0, 0) == "EINVAL", "the range is looked at all the same"


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_every_flag_bit_is_einval(vm: Vm) -> None:
    assert {try_set_memory_attributes(vm, 0, P, PRIVATE, 1 << bit) for bit in range(64)} == {"EINVAL"}


@pytest.mark.parametrize(
    ("address", "size", "attributes", "flags", "check"),
    [
        (1, 0, 1, 1, "flags-zero"),
        (0, P, 1, 1, "flags-zero"),
        (1, 0, 1, 0, "attributes-supported"),
        (0, P, PRIVATE | 1, 0, "attributes-supported"),
        (1, 0, PRIVATE, 0, "range-not-empty"),
        (U64 - 1, 1, PRIVATE, 0, "range-not-empty"),
        (1, P, PRIVATE, 0, "range-page-aligned"),
    ],
)
def test_flags_come_before_attributes_and_attributes_before_the_range(
    vm: Vm, address: int, size: int, attributes: int, flags: int, check: str
) -> None:
    assert check_of(lambda: vm.backend.set_memory_attributes(vm.fd, address, size, attributes, flags)) == check


@pytest.mark.parametrize("profile", ["v6.18"])
@pytest.mark.parametrize(
    ("address", "size", "attributes", "flags"), [(0, P, 0, 0), (0, P, PRIVATE, 0), (1, 0, 1, 1), (0, 0, 0, 0)]
)
def test_a_kernel_without_attributes_is_enotty_whatever_is_asked(
    vm: Vm, address: int, size: int, attributes: int, flags: int
) -> None:
    assert try_set_memory_attributes(vm, address, size, attributes, flags) == "ENOTTY"


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_the_ioctl_on_another_descriptor_gets_that_descriptors_errno(kvm: Kvm, vm: Vm) -> None:
    fds = (kvm.fd, vm.create_vcpu().fd, vm.create_guest_memfd(P).fd, kvm.backend.open_aux("memfd"), -1)

    ends = [errno_of(partial(kvm.backend.set_memory_attributes, fd, 0, P, 0, 0)) for fd in fds]

    assert ends == ["EINVAL", "EINVAL", "ENOTTY", "ENOTTY", "EBADF"]


# -- effects -----------------------------------------------------------------------------------------------------------


class Slot:
    """A slot of 4M at GPA over 2M host pages and a file, in a VM with private memory."""

    def __init__(self, kvm: Kvm, vm: Vm) -> None:
        self.kvm, self.vm, self.vcpu = kvm, vm, vm.create_vcpu()
        self.hva = kvm.model.anonymous(2 * M2, RW, M2, 9)
        self.gmem: GuestMemfd = vm.create_guest_memfd(2 * M2)
        bound(self.gmem, gpa=GPA, size=2 * M2, userspace_addr=self.hva).set(vm)

    def private(self, start: int, size: int) -> None:
        self.vm.set_memory_attributes(GPA + start, size, PRIVATE)

    def shared(self, start: int, size: int) -> None:
        self.vm.set_memory_attributes(GPA + start, size, 0)

    def touch(self, *offsets: int) -> None:
        for offset in offsets:
            self.vcpu.read(GPA + offset)


@pytest.fixture
def slot(kvm: Kvm, vm: Vm) -> Slot:
    return Slot(kvm, vm)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_setting_what_is_already_set_leaves_every_mapping_alone(slot: Slot) -> None:
    slot.private(0, 4 * P)
    slot.touch(0, P, M2)
    assert leaves(slot.vm) == {"4K": 2, "2M": 1}

    slot.private(0, 4 * P)
    slot.private(P, P)
    slot.shared(M2, M2)
    slot.shared(4 * P, M2)

    assert leaves(slot.vm) == {"4K": 2, "2M": 1}


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_one_page_that_changes_costs_every_mapping_of_the_range_also_those_that_keep_their_value(slot: Slot) -> None:
    slot.private(0, 4 * P)
    slot.touch(0, P, 2 * P, 3 * P)

    slot.private(P, 4 * P)  # three of them are private already

    assert leaves(slot.vm) == {"4K": 1}


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_huge_mapping_that_touches_the_range_goes_entirely_and_others_stay(slot: Slot) -> None:
    slot.touch(0, M2)
    assert leaves(slot.vm) == {"2M": 2}

    slot.private(M2 - P, P)

    assert leaves(slot.vm) == {"2M": 1}


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_data_moves_nowhere_and_each_side_keeps_its_own(slot: Slot) -> None:
    store(slot.vcpu, GPA, 1)
    slot.private(0, P)
    assert load(slot.vcpu, GPA) == [Exit("done", value=0)]
    store(slot.vcpu, GPA, 2)
    assert slot.kvm.read(slot.hva) == 1

    slot.shared(0, P)
    assert load(slot.vcpu, GPA) == [Exit("done", value=1)]
    slot.private(0, P)
    assert load(slot.vcpu, GPA) == [Exit("done", value=2)]

    slot.gmem.punch_hole(0, P)
    assert load(slot.vcpu, GPA) == [Exit("done", value=0)]


def test_with_a_file_that_can_be_mapped_both_states_use_the_same_page(vm: Vm, vcpu: Vcpu) -> None:
    gmem = vm.create_guest_memfd(P, MMAP)
    bound(gmem, gpa=GPA, size=P).set(vm)
    store(vcpu, GPA, 1)

    vm.set_memory_attributes(GPA, P, PRIVATE)
    assert load(vcpu, GPA) == [Exit("done", value=1)]
    store(vcpu, GPA, 2)
    vm.set_memory_attributes(GPA, P, 0)
    assert load(vcpu, GPA) == [Exit("done", value=2)]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_attributes_belong_to_frames_not_to_slots(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(2 * P)
    vm.set_memory_attributes(GPA, P, PRIVATE)
    vm.set_user_memory_region(0, gpa=GPA, size=2 * P, userspace_addr=hva)

    assert load(vcpu, GPA) == memory_fault(GPA)
    assert load(vcpu, GPA + P) == [Exit("done", value=0)]
    vm.delete_region(0)
    vm.set_user_memory_region(7, gpa=GPA, size=2 * P, userspace_addr=hva)
    assert load(vcpu, GPA) == memory_fault(GPA)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_each_vm_has_its_own_attributes(kvm: Kvm) -> None:
    one, two = kvm.create_vm(1), kvm.create_vm(1)
    hva = kvm.anonymous(P)
    for vm in (one, two):
        vm.set_user_memory_region(0, gpa=GPA, size=P, userspace_addr=hva)
    one.set_memory_attributes(GPA, P, PRIVATE)

    assert load(one.create_vcpu(), GPA) == memory_fault(GPA)
    assert load(two.create_vcpu(), GPA) == [Exit("done", value=0)]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_terabyte_is_one_run_and_clearing_a_never_set_range_records_nothing(vm: Vm) -> None:
    attributes = vm.model.attributes
    vm.set_memory_attributes(0, 1 << 40, 0)
    assert list(attributes) == []

    vm.set_memory_attributes(0, 1 << 40, PRIVATE)
    assert list(attributes) == [(0, 1 << 28, PRIVATE)]

    vm.set_memory_attributes(P, P, 0)
    assert list(attributes) == [(0, 1, PRIVATE), (2, 1 << 28, PRIVATE)]


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(1, 8), st.booleans()), max_size=12))
def test_the_last_word_about_each_page_counts(settings: list[tuple[int, int, bool]]) -> None:
    private: set[int] = set()
    with guestmem.open("model", profile="v7.2") as kvm:
        vm = kvm.create_vm(1)
        vcpu = vm.create_vcpu()
        for first, count, on in settings:
            vm.set_memory_attributes(first * P, count * P, PRIVATE if on else 0)
            pages = set(range(first, first + count))
            private = private | pages if on else private - pages

        faulted = {page for page in range(24) if load(vcpu, page * P)[0].kind == "memory_fault"}

    assert faulted == private


def test_a_kernel_without_attributes_says_which_vm_types_it_offers() -> None:
    with guestmem.open("model", profile="v6.18") as kvm, pytest.raises(guestmem.KvmError) as caught:
        kvm.create_vm().set_memory_attributes(0, P, PRIVATE)

    assert "VM types offered: 0" in str(caught.value)
