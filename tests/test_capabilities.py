"""KVM_CHECK_EXTENSION: the values that real kernels gave on the device and on VMs of each type."""

from __future__ import annotations

from functools import partial

import pytest
from helpers import RELEASED, P, errno_of, try_create_guest_memfd

import guestmem
from guestmem import uapi
from guestmem.model.profiles import Machine
from guestmem.objects import Kvm

# capability: 6.12 on device, type 0, type 1; 6.18 (PVM) on device, type 0; 7.2 and 7.3 on device, type 0, type 1
TABLE = {
    "NR_MEMSLOTS": (10, (32764, 32764, 32764), (32764, 32764), (32764, 32764, 32764), (32764, 32764, 32764)),
    "SYNC_MMU": (16, (1, 1, 1), (1, 1), (1, 1, 1), (1, 1, 1)),
    "READONLY_MEM": (81, (1, 1, 1), (1, 1), (1, 1, 1), (1, 1, 1)),
    "MULTI_ADDRESS_SPACE": (118, (2, 2, 1), (0, 0), (2, 2, 1), (2, 2, 1)),
    "USER_MEMORY2": (231, (1, 1, 1), (1, 1), (1, 1, 1), (1, 1, 1)),
    "MEMORY_FAULT_INFO": (232, (1, 1, 1), (1, 1), (1, 1, 1), (1, 1, 1)),
    "MEMORY_ATTRIBUTES": (233, (8, 0, 8), (0, 0), (8, 0, 8), (8, 0, 8)),
    "GUEST_MEMFD": (234, (1, 0, 1), (1, 1), (1, 1, 1), (1, 1, 1)),
    "VM_TYPES": (235, (3, 3, 3), (1, 1), (3, 3, 3), (3, 3, 3)),
    "PRE_FAULT_MEMORY": (236, (1, 1, 1), (0, 0), (1, 1, 1), (1, 1, 1)),
    "GUEST_MEMFD_FLAGS": (244, (0, 0, 0), (3, 3), (3, 3, 1), (3, 3, 1)),
}


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize("name", TABLE)
def test_a_capability_has_the_value_of_the_table(kvm: Kvm, profile: str, name: str) -> None:
    number, *by_kernel = TABLE[name]
    on_device, *on_types = by_kernel[RELEASED.index(profile)]

    assert getattr(uapi, f"KVM_CAP_{name}") == number
    assert kvm.check_extension(number) == on_device
    assert [kvm.create_vm(vm_type).check_extension(number) for vm_type in range(len(on_types))] == on_types


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize("number", [9999, 12345, 0xFFFFFFFF, (1 << 63) - 1])
def test_an_unknown_number_is_0_and_never_an_error(kvm: Kvm, number: int) -> None:
    assert kvm.check_extension(number) == 0
    assert kvm.create_vm().check_extension(number) == 0


@pytest.mark.parametrize("profile", RELEASED)
def test_only_the_device_and_vms_have_capabilities(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    fds = (vm.create_vcpu().fd, vm.create_guest_memfd(P).fd, kvm.backend.open_aux("memfd"), -1)

    ends = [errno_of(partial(kvm.backend.check_extension, fd, 10)) for fd in fds]

    assert ends == ["EINVAL", "ENOTTY", "ENOTTY", "EBADF"]


@pytest.mark.parametrize("profile", RELEASED)
def test_vm_types_tells_which_types_can_be_created(kvm: Kvm) -> None:
    offered = kvm.check_extension(uapi.KVM_CAP_VM_TYPES)

    ends = {vm_type: errno_of(partial(kvm.create_vm, vm_type)) for vm_type in range(64)}

    assert ends == {vm_type: None if offered >> vm_type & 1 else "EINVAL" for vm_type in range(64)}
    for vm_type in (1 << 31, (1 << 32) - 1, 1 << 32, (1 << 64) - 1):
        assert errno_of(partial(kvm.create_vm, vm_type)) == "EINVAL"


@pytest.mark.parametrize("profile", [*RELEASED, "next"])
def test_guest_memfd_flags_tells_which_of_the_released_flags_can_be_given(kvm: Kvm) -> None:
    for vm_type in (0, 1):
        if not kvm.check_extension(uapi.KVM_CAP_VM_TYPES) >> vm_type & 1:
            continue
        vm = kvm.create_vm(vm_type)
        offered = vm.check_extension(uapi.KVM_CAP_GUEST_MEMFD_FLAGS) & 3

        assert sum(flag for flag in (1, 2) if try_create_guest_memfd(vm, P, flag) is None) == offered


@pytest.mark.parametrize("profile", RELEASED)
@pytest.mark.parametrize(
    ("id", "ends"), [(0, None), (1, None), (4095, None), (4096, "EINVAL"), ((1 << 64) - 1, "EINVAL")]
)
def test_vcpu_ids_end_at_4095(kvm: Kvm, id: int, ends: str | None) -> None:
    vm = kvm.create_vm()

    assert errno_of(lambda: vm.create_vcpu(id)) == ends
    assert kvm.check_extension(uapi.KVM_CAP_MAX_VCPU_ID) == 4096


def test_vcpu_ids_of_a_distributions_kernel_end_where_its_machine_says() -> None:
    with guestmem.open("model", machine=Machine(max_vcpu_ids=16384)) as kvm:
        vm = kvm.create_vm()

        assert kvm.check_extension(uapi.KVM_CAP_MAX_VCPU_ID) == 16384
        assert [errno_of(partial(vm.create_vcpu, id)) for id in (16383, 16384)] == [None, "EINVAL"]


@pytest.mark.parametrize("profile", RELEASED)
def test_a_vcpu_id_stays_in_use_when_its_descriptor_is_closed(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.create_vcpu(7).close()

    assert errno_of(lambda: vm.create_vcpu(7)) == "EEXIST"
    assert errno_of(lambda: kvm.create_vm().create_vcpu(7)) is None
