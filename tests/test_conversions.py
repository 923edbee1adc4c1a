"""KVM_SET_MEMORY_ATTRIBUTES2: pages of a guest_memfd become private or shared in place, as queued for 7.4.

No kernel that has it can be booted yet. The scenarios are those that the posted selftest asserts
(guest_memfd_conversions_test, "guest_memfd: In-place conversion support" v13).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from helpers import INIT_SHARED, MMAP, PRIVATE, P, check_of, errno_of

import guestmem
from guestmem.backend import Touch
from guestmem.errors import HostSignal, KvmError
from guestmem.model.profiles import V7_3, V7_4, Machine
from guestmem.objects import GuestMemfd, Kvm, Mapping, Vcpu, Vm
from guestmem.uapi import (
    KVM_CAP_GUEST_MEMFD_FLAGS,
    KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES,
    KVM_CAP_MEMORY_ATTRIBUTES,
)

GPA = 4 << 30
PRIVATE_FILE, SHARED_FILE = MMAP, MMAP | INIT_SHARED


# -- kernels without it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["v6.18", "v7.2", "v7.3"])
@pytest.mark.parametrize(
    ("on", "errno"),
    [
        ("gmem", "ENOTTY"),
        ("vm", "ENOTTY"),
        ("memfd", "ENOTTY"),
        ("kvm", "EINVAL"),
        ("vcpu", "EINVAL"),
        ("closed", "EBADF"),
    ],
)
def test_no_descriptor_of_a_released_kernel_takes_it(kvm: Kvm, profile: str, on: str, errno: str) -> None:
    backend = kvm.backend
    vm = backend.create_vm(kvm.fd, 0)
    fds = {"kvm": kvm.fd, "vm": vm, "closed": -1}
    fds |= {"gmem": backend.create_guest_memfd(vm, 4096, 0), "vcpu": backend.create_vcpu(vm, 0)}
    fds |= {"memfd": backend.open_aux("memfd")}

    answer = backend.gmem_set_memory_attributes(fds[on], 0, 4096, 8, 0)

    assert answer.error_offset is None
    assert answer.refused is not None
    assert answer.refused.name == errno


# -- the switch --------------------------------------------------------------------------------------------------------

BUILT_WITHOUT = V7_4.machine
SWITCHED_ON = Machine(vm_attributes=True, in_place=True)
SWITCHED_OFF = Machine(vm_attributes=True)
NO_PRIVATE_TYPE = Machine(vm_types=(0,), vm_attributes=False)


def opened(machine: Machine) -> Kvm:
    return guestmem.open("model", profile="v7.4", machine=machine)


@pytest.mark.parametrize(
    ("machine", "of_the_vm", "of_the_file", "flags"),
    [
        (BUILT_WITHOUT, (0, 0, 0), (8, 0, 8), (3, 3, 3)),
        (SWITCHED_ON, (0, 0, 0), (8, 0, 8), (3, 3, 3)),
        (SWITCHED_OFF, (8, 0, 8), (0, 0, 0), (3, 3, 1)),
    ],
)
def test_what_the_capabilities_say_of_the_device_and_of_both_vm_types(
    machine: Machine, of_the_vm: tuple[int, ...], of_the_file: tuple[int, ...], flags: tuple[int, ...]
) -> None:
    with opened(machine) as kvm:
        asked = (kvm, kvm.create_vm(0), kvm.create_vm(1))
        assert tuple(each.check_extension(KVM_CAP_MEMORY_ATTRIBUTES) for each in asked) == of_the_vm
        assert tuple(each.check_extension(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) for each in asked) == of_the_file
        assert tuple(each.check_extension(KVM_CAP_GUEST_MEMFD_FLAGS) for each in asked) == flags


@pytest.mark.parametrize(
    ("machine", "shared", "private", "of_the_file"),
    [
        (BUILT_WITHOUT, "ENOTTY", "ENOTTY", None),
        (SWITCHED_ON, None, "EINVAL", None),
        (SWITCHED_OFF, None, None, "ENOTTY"),
    ],
)
def test_attributes_belong_to_the_vm_or_to_the_file_and_never_to_both(
    machine: Machine, shared: str | None, private: str | None, of_the_file: str | None
) -> None:
    with opened(machine) as kvm:
        vm = kvm.create_vm(1)
        gmem = vm.create_guest_memfd(P, PRIVATE_FILE)

        assert errno_of(lambda: vm.set_memory_attributes(0, P, 0)) == shared
        assert errno_of(lambda: vm.set_memory_attributes(0, P, PRIVATE)) == private
        assert errno_of(lambda: gmem.make_shared(0, P)) == of_the_file


def test_a_kernel_without_private_memory_has_no_conversion() -> None:
    with opened(NO_PRIVATE_TYPE) as kvm:
        gmem = kvm.create_vm(0).create_guest_memfd(P, PRIVATE_FILE)

        assert kvm.check_extension(KVM_CAP_GUEST_MEMFD_MEMORY_ATTRIBUTES) == 0
        assert errno_of(lambda: gmem.make_shared(0, P)) == "ENOTTY"


@pytest.mark.parametrize("machine", [BUILT_WITHOUT, SWITCHED_ON, SWITCHED_OFF, NO_PRIVATE_TYPE])
def test_every_flag_that_is_reported_works_alone_and_every_other_is_refused(machine: Machine) -> None:
    with opened(machine) as kvm:
        for vm in (kvm.create_vm(type) for type in machine.vm_types):
            reported = vm.check_extension(KVM_CAP_GUEST_MEMFD_FLAGS)
            for flag in (1 << bit for bit in range(64)):
                ended = errno_of(lambda vm=vm, flag=flag: vm.create_guest_memfd(P, flag))  # type: ignore[misc]
                assert ended == (None if reported & flag else "EINVAL"), f"{flag:#x}"


# -- checks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "size", "attributes", "flags", "reserved", "check"),
    [
        (0, P, 8, 0, (), None),
        (0, 4 * P, 8, 0, (0,) * 11, None),
        (3 * P, P, 0, 0, (), None),
        (1, 0, 1, 1, (1,), "flags-zero"),  # wrong in every way: the order of the checks
        (1, 0, 1, 0, (1,), "reserved-zero"),
        (0, P, 8, 0, (0,) * 10 + (1,), "reserved-zero"),
        (1, 0, 1, 0, (), "attributes-supported"),
        (0, P, 9, 0, (), "attributes-supported"),
        (1, 0, 8, 0, (), "range-not-empty"),
        ((1 << 64) - P, P, 8, 0, (), "range-not-empty"),
        (1, P, 8, 0, (), "range-page-aligned"),
        (0, P + 1, 8, 0, (), "range-page-aligned"),
        (4 * P, P, 8, 0, (), "range-in-file"),
        (0, 5 * P, 8, 0, (), "range-in-file"),
        (0, 1 << 63, 8, 0, (), "range-in-file"),
    ],
)
def test_checks_come_in_the_kernels_order(
    start: int, size: int, attributes: int, flags: int, reserved: tuple[int, ...], check: str | None
) -> None:
    with opened(BUILT_WITHOUT) as kvm:
        gmem = kvm.create_vm(1).create_guest_memfd(4 * P, PRIVATE_FILE)

        done = kvm.backend.gmem_set_memory_attributes(gmem.fd, start, size, attributes, flags, reserved)

        assert (done.refused and done.refused.check) == check
        assert (done.refused and done.refused.name) == (check and "EINVAL")
        assert done.error_offset is None


def test_a_vm_without_private_memory_is_refused_after_the_reserved_words() -> None:
    with opened(BUILT_WITHOUT) as kvm:
        gmem = kvm.create_vm(0).create_guest_memfd(P, SHARED_FILE)

        assert check_of(lambda: gmem.set_memory_attributes(1, 0, 1)) == "vm-has-private-memory"


# -- scenarios ---------------------------------------------------------------------------------------------------------


class World:
    """A VM with one slot over a whole file, and a mapping of that file."""

    def __init__(self, kvm: Kvm, pages: int, flags: int) -> None:
        self.kvm = kvm
        self.vm: Vm = kvm.create_vm(1)
        self.gmem: GuestMemfd = self.vm.create_guest_memfd(pages * P, flags)
        self.map: Mapping = self.gmem.mmap(pages * P)
        self.vm.set_user_memory_region2(
            0, gpa=GPA, size=pages * P, userspace_addr=self.map.addr, guest_memfd=self.gmem, guest_memfd_offset=0
        )
        self.vcpu: Vcpu = self.vm.create_vcpu(0)
        self.values = [0] * pages
        self._next = 0

    def private_check(self, pages: Iterable[int]) -> None:
        """Only the guest reads and writes them; it finds what was there before."""
        for page in pages:
            assert self.host(page, self.new()) == "SIGBUS"
            assert self.vcpu.read(GPA + page * P) == self.values[page]
            self.values[page] = self.new()
            self.vcpu.write(GPA + page * P, self.values[page])
            assert self.host(page) == "SIGBUS"

    def shared_check(self, pages: Iterable[int]) -> None:
        """Host and guest find what the other wrote."""
        for page in pages:
            assert self.host(page) == self.values[page]
            self.host(page, written := self.new())
            assert self.vcpu.read(GPA + page * P) == written
            self.values[page] = self.new()
            self.vcpu.write(GPA + page * P, self.values[page])
            assert self.host(page) == self.values[page]

    def host(self, page: int, value: int | None = None) -> int | str | None:
        """What a load of the host found, or None after a store; or the signal."""
        try:
            if value is None:
                return self.map.read(page * P)
            self.map.write(page * P, value)
        except HostSignal as ended:
            return ended.signal
        return None

    def new(self) -> int:
        self._next += 1
        return self._next


def world(pages: int, flags: int) -> Iterator[World]:
    with opened(BUILT_WITHOUT) as kvm:
        yield World(kvm, pages, flags)
        kvm.check_invariants()


@pytest.fixture
def one_private() -> Iterator[World]:
    yield from world(1, PRIVATE_FILE)


@pytest.fixture
def one_shared() -> Iterator[World]:
    yield from world(1, SHARED_FILE)


@pytest.fixture
def four_shared() -> Iterator[World]:
    yield from world(4, SHARED_FILE)


@pytest.fixture
def eight_shared() -> Iterator[World]:
    yield from world(8, SHARED_FILE)


def test_1_a_private_page_keeps_its_contents_when_it_becomes_shared_and_private_again(one_private: World) -> None:
    one_private.private_check([0])
    one_private.gmem.make_shared(0, P)
    one_private.shared_check([0])
    one_private.gmem.make_private(0, P)
    one_private.private_check([0])


def test_2_a_shared_page_keeps_its_contents_when_it_becomes_private_and_shared_again(one_shared: World) -> None:
    one_shared.shared_check([0])
    one_shared.gmem.make_private(0, P)
    one_shared.private_check([0])
    one_shared.gmem.make_shared(0, P)
    one_shared.shared_check([0])


@pytest.mark.parametrize("page", range(4))
def test_3_only_the_page_that_is_converted_changes(four_shared: World, page: int) -> None:
    four_shared.shared_check(reversed(range(4)))
    four_shared.gmem.make_private(page * P, P)
    four_shared.private_check([page])
    four_shared.shared_check(other for other in range(4) if other != page)
    four_shared.gmem.make_shared(page * P, P)
    four_shared.shared_check(range(4))


def test_4_a_page_that_was_never_touched_can_be_converted_and_reads_zero(one_shared: World, one_private: World) -> None:
    one_shared.gmem.make_private(0, P)
    one_shared.private_check([0])
    one_private.gmem.make_shared(0, P)
    one_private.shared_check([0])


@pytest.mark.parametrize("page", range(8))
def test_5_pages_that_are_there_and_pages_that_are_not_are_converted_in_one_call(
    eight_shared: World, page: int
) -> None:
    eight_shared.shared_check({page, 4})
    eight_shared.gmem.make_private(0, 8 * P)
    eight_shared.private_check(range(8))
    for each in range(8):
        eight_shared.gmem.make_shared(each * P, P)
    eight_shared.shared_check(range(8))


def test_6_a_punched_page_loses_its_contents_and_keeps_its_attribute(one_shared: World) -> None:
    one_shared.host(0, one_shared.new())
    one_shared.gmem.punch_hole(0, P)
    assert one_shared.host(0) == 0
    one_shared.host(0, written := one_shared.new())
    one_shared.values[0] = written
    one_shared.gmem.make_private(0, P)
    one_shared.private_check([0])
    one_shared.gmem.punch_hole(0, P)
    assert one_shared.host(0) == "SIGBUS"
    assert one_shared.vcpu.read(GPA) == 0


def test_7_every_mapping_of_the_file_loses_what_becomes_private(one_shared: World) -> None:
    """The selftest's other mapping is that of a forked child; the model is one process, which maps the file twice."""
    other = one_shared.gmem.mmap(P)
    one_shared.shared_check([0])
    assert other.read() == one_shared.values[0]
    other.write(0, written := one_shared.new())
    one_shared.values[0] = written
    one_shared.gmem.make_private(0, P)
    one_shared.private_check([0])
    for access in (other.read, lambda: other.write(0, 1)):
        with pytest.raises(HostSignal, match="SIGBUS"):
            access()


@pytest.mark.parametrize("page", range(4))
def test_8_a_page_that_is_held_refuses_the_whole_range_and_says_where(four_shared: World, page: int) -> None:
    four_shared.shared_check(range(4))
    pin = four_shared.map.pin(page * P, P)

    with pytest.raises(KvmError, match="EAGAIN") as refused:  # 8a
        four_shared.gmem.make_private(0, 4 * P)
    assert refused.value.error_offset == page * P
    four_shared.shared_check(range(4))

    for each in range(4):  # 8b
        ended = errno_of(lambda each=each: four_shared.gmem.make_private(each * P, P))  # type: ignore[misc]
        assert ended == ("EAGAIN" if each == page else None)
    four_shared.private_check(each for each in range(4) if each != page)

    pin.close()  # 8c
    four_shared.gmem.make_private(0, 4 * P)
    four_shared.private_check(range(4))


# -- what the selftest does not ask --------------------------------------------------------------------


def test_a_page_may_be_held_while_it_becomes_shared(one_shared: World) -> None:
    pin = one_shared.map.pin(0, P)
    one_shared.gmem.make_shared(0, P)
    assert errno_of(lambda: one_shared.gmem.make_private(0, P)) == "EAGAIN"
    pin.close()


def test_what_is_private_already_is_not_asked_for_references(four_shared: World) -> None:
    four_shared.gmem.make_private(0, P)
    pin = four_shared.map.pin(P, P)

    assert errno_of(lambda: four_shared.gmem.make_private(0, P)) is None
    assert errno_of(lambda: four_shared.gmem.make_private(0, 2 * P)) == "EAGAIN"
    pin.close()


def test_a_punched_page_is_not_held_any_more(one_shared: World) -> None:
    pin = one_shared.map.pin(0, P)
    one_shared.gmem.punch_hole(0, P)
    one_shared.gmem.make_private(0, P)
    one_shared.values = [0]
    one_shared.private_check([0])
    pin.close()


def test_a_deleted_slot_leaves_mmio_behind_also_where_the_page_was_private(one_private: World) -> None:
    one_private.vcpu.read(GPA)
    one_private.vm.delete_region(0)

    exits = one_private.vcpu.touch(Touch(GPA, "r", 8))
    assert [exit.kind for exit in exits] == ["mmio", "done"]


def test_a_slot_whose_file_is_closed_has_shared_frames_without_memory(one_private: World) -> None:
    one_private.vcpu.read(GPA)
    one_private.map.unmap()
    one_private.gmem.close()

    [exit] = one_private.vcpu.touch(Touch(GPA, "r", 8))
    assert (exit.kind, exit.errno, exit.flags) == ("memory_fault", "EFAULT", 0)


def test_a_shared_access_takes_the_file_even_where_it_cannot_be_mapped() -> None:
    with opened(BUILT_WITHOUT) as kvm:
        vm = kvm.create_vm(1)
        gmem = vm.create_guest_memfd(P, INIT_SHARED)
        host = kvm.anonymous(P)
        vm.set_user_memory_region2(0, gpa=GPA, size=P, userspace_addr=host, guest_memfd=gmem, guest_memfd_offset=0)
        kvm.write(host, 7)

        assert vm.create_vcpu(0).read(GPA) == 0


def test_a_default_vm_cannot_use_a_file_that_starts_private() -> None:
    with opened(BUILT_WITHOUT) as kvm:
        vm = kvm.create_vm(0)
        gmem = vm.create_guest_memfd(P, PRIVATE_FILE)
        vm.set_user_memory_region2(0, gpa=GPA, size=P, userspace_addr=0, guest_memfd=gmem, guest_memfd_offset=0)
        vcpu = vm.create_vcpu(0)

        [exit] = vcpu.touch(Touch(GPA, "r", 8))

        assert (exit.kind, exit.errno, exit.flags) == ("memory_fault", "EFAULT", 0)
        assert errno_of(lambda: vcpu.pre_fault_memory(GPA, P)) == "EFAULT"
        assert errno_of(lambda: gmem.make_shared(0, P)) == "EINVAL"


def test_switched_off_the_kernel_is_7_3() -> None:
    v7_3 = replace(V7_3, name="", title="", machine=Machine())
    assert replace(V7_4, name="", title="", machine=Machine(), in_place=False) == v7_3
