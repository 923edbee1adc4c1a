"""What KVM remembers of accesses to frames without a slot, and when it forgets."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from helpers import LOG_DIRTY, PRIVATE, WITH_PRIVATE_MEMORY, P, Region, load, memory_fault, store, try_pre_fault

from guestmem.backend import Exit
from guestmem.objects import Kvm, Vcpu, Vm

GPA = 1 << 30
ELSEWHERE = 1 << 33
MMIO = [Exit("mmio", gpa=GPA, len=8, is_write=0), Exit("done", value=0x5A5A5A5A5A5A5A5A)]


@pytest.fixture
def touched(vm: Vm, vcpu: Vcpu) -> Vcpu:
    """A vCPU that touched GPA as MMIO, before the frame was made private."""
    Region(slot=9, gpa=ELSEWHERE).set(vm)
    assert load(vcpu, GPA) == MMIO
    vm.set_memory_attributes(GPA, P, PRIVATE)
    return vcpu


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_frame_never_touched_before_is_a_private_fault(vm: Vm, vcpu: Vcpu) -> None:
    vm.set_memory_attributes(GPA, P, PRIVATE)

    assert load(vcpu, GPA) == memory_fault(GPA, flags=8)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_frame_touched_as_mmio_stays_mmio_when_it_becomes_private(vm: Vm, touched: Vcpu) -> None:
    assert load(touched, GPA) == MMIO
    assert load(touched, GPA) == MMIO
    assert store(touched, GPA, 1, 1) == [Exit("mmio", gpa=GPA, len=1, is_write=1, data="01"), Exit("done")]
    assert load(touched, GPA + P)[0].kind == "mmio", "its neighbour is shared anyway"


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
@pytest.mark.parametrize(
    "change",
    [
        lambda vm: Region(slot=5, gpa=4 * GPA).set(vm),
        lambda vm: vm.delete_region(9),
        lambda vm: Region(slot=9, gpa=2 * ELSEWHERE).set(vm),
        lambda vm: Region(slot=9, gpa=ELSEWHERE, flags=LOG_DIRTY).set(vm),
    ],
    ids=["create", "delete", "move", "flags"],
)
def test_after_any_change_of_a_slot_the_access_counts_as_shared_and_fails_with_flags_0(
    vm: Vm, touched: Vcpu, change: Callable[[Vm], None]
) -> None:
    change(vm)

    assert load(touched, GPA) == memory_fault(GPA, flags=0)
    assert load(touched, GPA) == memory_fault(GPA, flags=0), "the entry is still there"


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_setting_a_slot_to_what_it_is_changes_nothing(vm: Vm, touched: Vcpu) -> None:
    Region(slot=9, gpa=ELSEWHERE).set(vm)
    assert Region(slot=9, gpa=ELSEWHERE, size=8 * P).try_set(vm) == "EINVAL"

    assert load(touched, GPA) == MMIO


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_a_slot_over_the_frame_replaces_the_entry_by_a_mapping(kvm: Kvm, vm: Vm, touched: Vcpu) -> None:
    vm.set_memory_attributes(GPA, P, 0)
    Region(slot=0, gpa=GPA, size=P, userspace_addr=kvm.anonymous(P)).set(vm)
    assert load(touched, GPA) == [Exit("done", value=0)]

    vm.delete_region(0)
    vm.set_memory_attributes(GPA, P, PRIVATE)

    assert load(touched, GPA) == memory_fault(GPA, flags=8)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_every_vcpu_of_the_vm_meets_the_entry_and_pre_fault_does_not(vm: Vm, touched: Vcpu) -> None:
    assert load(vm.create_vcpu(1), GPA) == MMIO
    assert try_pre_fault(touched, GPA, P) == ("EFAULT", GPA, P)


@pytest.mark.parametrize("profile", WITH_PRIVATE_MEMORY)
def test_each_vm_remembers_by_itself(kvm: Kvm, vm: Vm, touched: Vcpu) -> None:
    other = kvm.create_vm(1)
    other.set_memory_attributes(GPA, P, PRIVATE)

    assert load(other.create_vcpu(), GPA) == memory_fault(GPA, flags=8)
