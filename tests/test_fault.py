"""A guest access that no mapping answers: the case table of real kernels, and the steps it walks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import (
    INIT_SHARED,
    M2,
    MMAP,
    PRIVATE,
    READONLY,
    RW,
    WITH_PRIVATE_MEMORY,
    P,
    Region,
    bound,
    leaves,
    load,
    memory_fault,
    store,
)

import guestmem
from guestmem.backend import Exit, Touch
from guestmem.model.fault import STEPS, compare_attribute, get_page, look_up_slot, recheck, sample_invalidations
from guestmem.model.page_fault import Fault
from guestmem.model.profiles import V7_2
from guestmem.objects import GuestMemfd, Kvm, Vcpu, Vm
from guestmem.uapi import PROT_READ

GPA = 1 << 30
HOST_ERROR = [Exit("unknown", errno="EFAULT")]
DONE = [Exit("done")]


def mmio_load(gpa: int, size: int = 8) -> list[Exit]:
    """What the harness of the recordings answers an MMIO load with."""
    answer = int.from_bytes(b"\x5a" * size, "little")
    return [Exit("mmio", gpa=gpa, len=size, is_write=0), Exit("done", value=answer)]


def mmio_store(gpa: int, data: str) -> list[Exit]:
    return [Exit("mmio", gpa=gpa, len=len(data) // 2, is_write=1, data=data), Exit("done")]


def fetch(vcpu: Vcpu, gpa: int) -> list[Exit]:
    return vcpu.touch(Touch(gpa, "x", 1))


# -- shared ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize(
    ("size", "value", "data"), [(1, 0xAB, "ab"), (4, 0x11223344, "44332211"), (8, 1, "01" + 14 * "0")]
)
def test_without_a_slot_a_shared_access_is_mmio_with_its_address_and_length(
    vcpu: Vcpu, size: int, value: int, data: str
) -> None:
    assert load(vcpu, GPA + 0x123, size) == mmio_load(GPA + 0x123, size)
    assert store(vcpu, GPA + 0x123, value, size) == mmio_store(GPA + 0x123, data)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize("size", [1, 4, 8])
def test_memory_is_little_endian_and_stores_touch_no_neighbour(kvm: Kvm, vm: Vm, vcpu: Vcpu, size: int) -> None:
    hva = kvm.anonymous(P)
    Region(gpa=GPA, size=P, userspace_addr=hva).set(vm)
    store(vcpu, GPA, 0xFFFFFFFFFFFFFFFF)
    store(vcpu, GPA + 8, 0xFFFFFFFFFFFFFFFF)

    assert store(vcpu, GPA, 0, size) == DONE
    assert vcpu.read(GPA, 8) == (1 << 64) - (1 << 8 * size)
    assert kvm.read(hva, 8) == (1 << 64) - (1 << 8 * size)
    assert vcpu.read(GPA + 8) == (1 << 64) - 1


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize("flags", [READONLY])
def test_a_read_only_slot_takes_loads_and_makes_stores_mmio(kvm: Kvm, vm: Vm, vcpu: Vcpu, flags: int) -> None:
    hva = kvm.anonymous(P)
    kvm.write(hva, 7)
    Region(gpa=GPA, size=P, userspace_addr=hva, flags=flags).set(vm)

    assert store(vcpu, GPA, 1) == mmio_store(GPA, "01" + 14 * "0")
    assert load(vcpu, GPA) == [Exit("done", value=7)]
    assert store(vcpu, GPA, 1) == mmio_store(GPA, "01" + 14 * "0"), "also once a load has mapped it"
    assert kvm.read(hva) == 7


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_host_memory_that_is_not_mapped_or_not_accessible_is_a_bare_efault(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    Region(slot=0, gpa=GPA, size=P, userspace_addr=0x10000).set(vm)
    Region(slot=1, gpa=2 * GPA, size=P, userspace_addr=kvm.anonymous(P, prot=0)).set(vm)

    for gpa in (GPA, 2 * GPA):
        assert [load(vcpu, gpa), store(vcpu, gpa), fetch(vcpu, gpa)] == [HOST_ERROR] * 3


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_host_memory_that_may_only_be_read_takes_loads_and_refuses_stores(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    Region(gpa=GPA, size=P, userspace_addr=kvm.anonymous(P, prot=PROT_READ)).set(vm)

    assert store(vcpu, GPA) == HOST_ERROR
    assert load(vcpu, GPA) == [Exit("done", value=0)]
    assert store(vcpu, GPA) == HOST_ERROR


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_each_page_of_a_slot_has_the_protection_of_its_own_host_page(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(3 * P)
    Region(gpa=GPA, size=3 * P, userspace_addr=hva).set(vm)
    kvm.backend.munmap(hva + P, P)

    assert [load(vcpu, GPA + page * P) for page in range(3)] == [
        [Exit("done", value=0)],
        HOST_ERROR,
        [Exit("done", value=0)],
    ]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize("change", ["munmap", "mprotect"])
def test_a_mapping_goes_when_the_host_takes_the_page_away(kvm: Kvm, vm: Vm, vcpu: Vcpu, change: str) -> None:
    hva = kvm.anonymous(P)
    Region(gpa=GPA, size=P, userspace_addr=hva).set(vm)
    store(vcpu, GPA, 1)

    if change == "munmap":
        kvm.backend.munmap(hva, P)
    else:
        kvm.backend.mprotect(hva, P, 0)

    assert leaves(vm) == {}
    assert load(vcpu, GPA) == HOST_ERROR


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_host_page_that_becomes_writable_is_mapped_anew_by_the_next_store(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(P, prot=PROT_READ)
    Region(gpa=GPA, size=P, userspace_addr=hva).set(vm)
    load(vcpu, GPA)

    kvm.backend.mprotect(hva, P, RW)

    assert store(vcpu, GPA, 5) == DONE
    assert kvm.read(hva) == 5


# -- private -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize("offset", [0, 8, P - 8])
@pytest.mark.parametrize("kind", ["no slot", "plain", "read-only", "host memory missing"])
def test_private_without_a_file_is_a_memory_fault_of_the_page_for_every_kind_of_access(
    kvm: Kvm, vm: Vm, vcpu: Vcpu, kind: str, offset: int
) -> None:
    vm.set_memory_attributes(GPA, P, PRIVATE)
    if kind != "no slot":
        hva = 0x10000 if kind == "host memory missing" else kvm.anonymous(P)
        Region(gpa=GPA, size=P, userspace_addr=hva, flags=READONLY if kind == "read-only" else 0).set(vm)

    gpa = GPA + offset
    assert [load(vcpu, gpa), store(vcpu, gpa), fetch(vcpu, gpa)] == [memory_fault(GPA)] * 3


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_private_with_a_file_is_the_files_page_zero_at_first(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(P)
    kvm.write(hva, 0x55)
    gmem = vm.create_guest_memfd(P)
    bound(gmem, gpa=GPA, size=P, userspace_addr=hva).set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)

    assert load(vcpu, GPA) == [Exit("done", value=0)]
    assert fetch(vcpu, GPA) == DONE
    assert store(vcpu, GPA, 0x66) == DONE
    assert kvm.read(hva) == 0x55, "the host never sees it"


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_private_needs_no_host_memory_at_all(vm: Vm, vcpu: Vcpu) -> None:
    gmem = vm.create_guest_memfd(P)
    bound(gmem, gpa=GPA, size=P, userspace_addr=0).set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)

    assert store(vcpu, GPA, 5) == DONE


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_after_the_file_is_closed_private_faults_and_shared_uses_the_host_memory(kvm: Kvm, vm: Vm, vcpu: Vcpu) -> None:
    hva = kvm.anonymous(2 * P)
    kvm.write(hva + P, 5)
    gmem = vm.create_guest_memfd(2 * P)
    bound(gmem, gpa=GPA, size=2 * P, userspace_addr=hva).set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)
    gmem.close()

    assert [load(vcpu, GPA), store(vcpu, GPA)] == [memory_fault(GPA)] * 2
    assert load(vcpu, GPA + P) == [Exit("done", value=5)]


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_after_the_slot_is_deleted_private_is_a_memory_fault(vm: Vm, vcpu: Vcpu) -> None:
    gmem = vm.create_guest_memfd(P)
    bound(gmem, gpa=GPA, size=P).set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)
    store(vcpu, GPA, 5)

    vm.delete_region(0)

    assert load(vcpu, GPA) == memory_fault(GPA)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_fixing_the_cause_lets_the_access_through(vm: Vm, vcpu: Vcpu) -> None:
    vm.set_memory_attributes(GPA, P, PRIVATE)
    assert store(vcpu, GPA, 5) == memory_fault(GPA)

    bound(vm.create_guest_memfd(P), gpa=GPA, size=P).set(vm)

    assert store(vcpu, GPA, 5) == DONE


# -- default VMs and files that can be mapped --------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, INIT_SHARED])
def test_on_a_default_vm_a_file_without_the_mmap_flag_is_never_asked(kvm: Kvm, default_vm: Vm, flags: int) -> None:
    gmem, hva = default_vm.create_guest_memfd(P, flags), kvm.anonymous(P)
    vcpu = default_vm.create_vcpu()
    bound(gmem, gpa=GPA, size=P, userspace_addr=hva).set(default_vm)

    store(vcpu, GPA, 5)

    assert kvm.read(hva) == 5
    assert gmem.model.contents.written() == []


@pytest.mark.parametrize("vm_type", [0, 1])
def test_a_file_with_the_mmap_flag_takes_every_access_whatever_the_host_memory_is(kvm: Kvm, vm_type: int) -> None:
    vm = kvm.create_vm(vm_type)
    vcpu, gmem, hva = vm.create_vcpu(), vm.create_guest_memfd(2 * P, MMAP), kvm.anonymous(2 * P)
    bound(gmem, gpa=GPA, size=2 * P, userspace_addr=hva).set(vm)
    if vm_type:
        vm.set_memory_attributes(GPA, P, PRIVATE)

    store(vcpu, GPA, 5)
    store(vcpu, GPA + P, 6)

    assert [kvm.read(hva), kvm.read(hva + P)] == [0, 0]
    assert [gmem.model.contents.read(0, 8), gmem.model.contents.read(P, 8)] == [5, 6]


def test_a_closed_file_with_the_mmap_flag_is_a_memory_fault_whose_flags_tell_the_kind_of_access(kvm: Kvm) -> None:
    vm = kvm.create_vm(1)
    vcpu, gmem = vm.create_vcpu(), vm.create_guest_memfd(2 * P, MMAP)
    bound(gmem, gpa=GPA, size=2 * P, userspace_addr=kvm.anonymous(2 * P)).set(vm)
    vm.set_memory_attributes(GPA, P, PRIVATE)
    gmem.close()

    assert load(vcpu, GPA) == memory_fault(GPA, flags=8)
    assert load(vcpu, GPA + P) == memory_fault(GPA + P, flags=0)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_default_vm_has_no_private_access(kvm: Kvm, default_vm: Vm) -> None:
    vcpu = default_vm.create_vcpu()
    Region(gpa=GPA, size=P, userspace_addr=kvm.anonymous(P)).set(default_vm)
    default_vm.set_memory_attributes(GPA, P, 0)

    assert store(vcpu, GPA, 5) == DONE


def test_without_a_host_page_the_fault_carries_enomem() -> None:
    with guestmem.open("model", profile="v7.2", machine=replace(V7_2.machine, pools=((0, 1),))) as kvm:
        vm = kvm.create_vm(1)
        vcpu, gmem = vm.create_vcpu(), vm.create_guest_memfd(2 * P)
        bound(gmem, gpa=GPA, size=2 * P).set(vm)
        vm.set_memory_attributes(GPA, 2 * P, PRIVATE)
        store(vcpu, GPA, 1)

        assert load(vcpu, GPA + P) == memory_fault(GPA + P, errno="ENOMEM")
        gmem.punch_hole(0, P)
        assert load(vcpu, GPA + P) == [Exit("done", value=0)]


@pytest.mark.parametrize(("vm_type", "space", "kind"), [(0, 0, "done"), (0, 1, "mmio"), (1, 0, "done")])
def test_only_slots_of_address_space_0_answer_accesses(kvm: Kvm, vm_type: int, space: int, kind: str) -> None:
    vm = kvm.create_vm(vm_type)
    Region(slot=space << 16, gpa=GPA, size=P, userspace_addr=kvm.anonymous(P)).set(vm)

    assert load(vm.create_vcpu(), GPA)[0].kind == kind


@pytest.mark.parametrize("profile", ["v6.12", "v6.18", "v7.2"])
def test_running_what_is_no_vcpu_gets_the_descriptors_errno(kvm: Kvm, vm: Vm) -> None:
    def run(fd: int) -> str | None:
        try:
            kvm.backend.run_touch(fd, None, [])
        except guestmem.KvmError as refused:
            return refused.name
        return None

    vcpu = vm.create_vcpu()
    assert run(vcpu.fd) is None
    vcpu.close()
    assert [run(kvm.fd), run(vm.fd), run(vcpu.fd), run(-1)] == ["EINVAL", "ENOTTY", "EBADF", "EBADF"]
    assert run(vm.create_guest_memfd(P).fd) == "ENOTTY"


# -- the steps, one by one ---------------------------------------------------------------------------------------------


@pytest.fixture
def gmem(vm: Vm) -> GuestMemfd:
    """A file bound at GPA whose whole range is private."""
    gmem = vm.create_guest_memfd(M2)
    bound(gmem, gpa=GPA, size=M2).set(vm)
    vm.set_memory_attributes(GPA, M2, PRIVATE)
    return gmem


def walk_until(vm: Vm, last: object) -> Fault:
    """A fault at GPA, stopped after a step."""
    fault = Fault(vm.model, GPA // P)
    for step in STEPS:
        assert step(fault) is None
        if step is last:
            break
    return fault


@pytest.mark.parametrize("change", ["punch", "attribute", "delete", "close"])
def test_an_invalidation_between_getting_the_page_and_mapping_it_makes_the_fault_start_again(
    vm: Vm, gmem: GuestMemfd, change: str
) -> None:
    fault = walk_until(vm, get_page)

    {
        "punch": lambda: gmem.punch_hole(0, P),
        "attribute": lambda: vm.set_memory_attributes(GPA, P, 0),
        "delete": lambda: vm.delete_region(0),
        "close": gmem.close,
    }[change]()

    outcome = recheck(fault)
    assert outcome is not None
    assert outcome.kind == "retry"


def test_an_undisturbed_fault_is_not_repeated(vm: Vm, gmem: GuestMemfd) -> None:
    assert recheck(walk_until(vm, get_page)) is None


def test_a_frame_under_invalidation_is_retried_and_its_neighbours_outside_are_not(vm: Vm, gmem: GuestMemfd) -> None:
    fault = walk_until(vm, look_up_slot)
    vm.model.invalidate_begin(GPA // P, GPA // P + 1)
    sample_invalidations(fault)
    get_page(fault)

    outcome = recheck(fault)
    assert outcome is not None
    assert outcome.kind == "retry"
    vm.model.invalidate_end(GPA // P, GPA // P + 1)


def test_an_attribute_that_changed_since_it_was_read_goes_to_user_space(vm: Vm, gmem: GuestMemfd) -> None:
    fault = walk_until(vm, sample_invalidations)
    vm.set_memory_attributes(GPA, P, 0)

    outcome = compare_attribute(fault)
    assert outcome is not None
    assert (outcome.kind, fault.private) == ("memory_fault", True)
