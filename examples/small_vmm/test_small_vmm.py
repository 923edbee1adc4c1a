"""Tests of small_vmm.py: `pytest examples/small_vmm`, and on a real kernel with `--guestmem-backend lab`."""

from __future__ import annotations

import pytest
from small_vmm import PAGE, Ram

from guestmem import Kvm, Vm

GPA, SIZE = 0x400000, 8 * PAGE


@pytest.fixture
def ram(guestmem_backend: Kvm, guestmem_vm: Vm) -> Ram:
    return Ram(guestmem_backend, guestmem_vm, GPA, SIZE)


def test_what_the_guest_writes_to_private_memory_never_reaches_the_host(
    guestmem_backend: Kvm, guestmem_vm: Vm, ram: Ram
) -> None:
    vcpu = guestmem_vm.create_vcpu()
    vcpu.write(GPA, 0x1111)
    ram.make_private(GPA, PAGE)

    assert vcpu.read(GPA) == 0
    vcpu.write(GPA, 0x2222)
    assert guestmem_backend.read(ram.hva) == 0x1111


def test_nothing_private_survives_the_way_back(guestmem_vm: Vm, ram: Ram) -> None:
    vcpu = guestmem_vm.create_vcpu()
    ram.make_private(GPA, SIZE)
    vcpu.write(GPA + PAGE, 0x2222)
    ram.make_shared(GPA, SIZE)
    ram.make_private(GPA, SIZE)

    assert vcpu.read(GPA + PAGE) == 0


def test_neighbours_of_a_conversion_keep_what_they_have(guestmem_vm: Vm, ram: Ram) -> None:
    vcpu = guestmem_vm.create_vcpu()
    for page in range(8):
        vcpu.write(GPA + page * PAGE, page + 1)
    ram.make_private(GPA + 3 * PAGE, 2 * PAGE)

    assert [vcpu.read(GPA + page * PAGE) for page in range(8)] == [1, 2, 3, 0, 0, 6, 7, 8]


@pytest.mark.guestmem_requires("KVM_CAP_PRE_FAULT_MEMORY")
def test_memory_can_be_there_before_the_guest_asks(guestmem_vm: Vm, ram: Ram) -> None:
    vcpu = guestmem_vm.create_vcpu()
    ram.make_private(GPA, SIZE)

    vcpu.pre_fault_memory(GPA, PAGE)
    assert vcpu.read(GPA) == 0
