"""Looking at VMs of this machine: a guest of this very process, and QEMUs asked over QMP as well.

Skips where there is no usable /dev/kvm, or where kernel memory cannot be read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import guestmem
from guestmem.cli import app
from guestmem.errors import BackendUnavailable, InputError
from guestmem.host.document import HostReport, HostSlot
from guestmem.host.kernel import KernelView, open_kernel
from guestmem.host.machine import look_at_machine
from guestmem.layout.coverage import cover
from guestmem.layout.live import paused_qemu, read_live
from guestmem.objects import Kvm, Vm
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import MIB

P = 4096
GPA = 1 << 30
needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)


@pytest.fixture
def kernel() -> Iterator[KernelView]:
    try:
        opened = open_kernel()
    except BackendUnavailable as missing:
        pytest.skip(str(missing))
    yield opened
    opened.memory.close()


@pytest.fixture
def kvm(kernel: KernelView) -> Iterator[Kvm]:
    try:
        opened = guestmem.open("kvm")
    except BackendUnavailable as missing:
        pytest.skip(str(missing))
    with opened:
        yield opened


def descriptors() -> list[str]:
    return sorted(str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.exists())


def own_slots(vm: Vm) -> dict[str, HostSlot]:
    """The slots of this process's VM as the host sees them, by GPA."""
    report = look_at_machine(os.getpid())
    assert vm is not None
    (found,) = report.vms
    assert found.note == ""
    return {slot.gpa: slot for slot in found.slots}


def test_slots_are_found_as_this_process_sets_them(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    one, two = kvm.anonymous(4 * MIB), kvm.anonymous(4 * MIB)
    vm.set_user_memory_region(1, gpa=GPA, size=4 * MIB, userspace_addr=one)
    vm.set_user_memory_region(2, gpa=2 * GPA, size=2 * MIB, userspace_addr=two + P, flags=KVM_MEM_LOG_DIRTY_PAGES)

    slots = own_slots(vm)

    assert slots[f"{GPA:#x}"].hva == f"{one:#x}"
    assert slots[f"{GPA:#x}"].size == 4 * MIB
    assert slots[f"{2 * GPA:#x}"].flags == KVM_MEM_LOG_DIRTY_PAGES
    assert slots[f"{2 * GPA:#x}"].possible["2M"] == 0


def test_a_slot_that_is_deleted_is_gone(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    memory = kvm.anonymous(2 * MIB)
    vm.set_user_memory_region(1, gpa=GPA, size=2 * MIB, userspace_addr=memory)
    assert f"{GPA:#x}" in own_slots(vm)

    vm.set_user_memory_region(1, gpa=GPA, size=0, userspace_addr=memory)

    assert f"{GPA:#x}" not in own_slots(vm)


def test_pages_that_the_guest_touched_are_mapped_and_others_are_not(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    memory = kvm.anonymous(4 * MIB)
    vm.set_user_memory_region(1, gpa=GPA, size=4 * MIB, userspace_addr=memory + P)
    vcpu = vm.create_vcpu()
    assert sum(own_slots(vm)[f"{GPA:#x}"].mapped.values()) == 0

    for page in range(3):
        vcpu.read(GPA + page * P)

    assert own_slots(vm)[f"{GPA:#x}"].mapped == {"4K": 3 * P, "2M": 0, "1G": 0}


def test_looking_leaves_no_descriptor_behind(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    before = descriptors()

    look_at_machine(os.getpid())

    assert descriptors() == before
    assert vm is not None


def test_a_process_without_a_vm_is_said_to_have_none(kernel: KernelView) -> None:
    assert look_at_machine(os.getppid()).vms == []
    result = CliRunner().invoke(app, ["host", str(os.getppid())])
    assert isinstance(result.exception, InputError)
    assert "holds no VM" in str(result.exception)


@needs_qemu
@pytest.mark.parametrize(
    "arguments",
    [
        "-machine microvm,accel=kvm -m 64M -nodefaults",
        "-machine q35,accel=kvm -m 512M -nodefaults",
        "-machine q35,accel=kvm,memory-backend=m0 -m 1G -object memory-backend-memfd,id=m0,size=1G,share=on",
    ],
    ids=["microvm", "q35", "q35 on a memfd"],
)
def test_every_slot_is_as_qemu_says_and_check_says_the_same_of_it(kernel: KernelView, arguments: str) -> None:
    pytest.importorskip("qemu.qmp")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("/dev/kvm is not usable")
    with paused_qemu("test", arguments) as socket:
        (said,) = read_live(f"qmp:{socket}")
        report = look_at_machine()
        (vm,) = [vm for vm in report.vms if _names(vm.pid, str(socket))]
        (seen,) = read_live(f"pid:{vm.pid}")

    assert [(slot.gpa, slot.size, slot.hva) for slot in seen.slots] == [
        (slot.gpa, slot.size, slot.hva) for slot in said.slots
    ]
    for by_kernel, by_qemu in zip(cover(seen).slots, cover(said).slots, strict=True):
        if by_kernel.slot.backing.thp is False or by_kernel.slot.flags != by_qemu.slot.flags:
            # QEMU does not say what the host grants, nor that dirty logging is on.
            assert all(a <= b for a, b in zip(by_kernel.mapped, by_qemu.mapped, strict=True))
        else:
            assert by_kernel.mapped == by_qemu.mapped, hex(by_kernel.slot.gpa)
    assert vm.vmm == "qemu"


def _names(pid: int, what: str) -> bool:
    return what in Path(f"/proc/{pid}/cmdline").read_bytes().decode()


def test_two_looks_at_the_same_thing_say_the_same(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.set_user_memory_region(1, gpa=GPA, size=4 * MIB, userspace_addr=kvm.anonymous(4 * MIB))

    def slots(report: HostReport) -> list[HostSlot]:
        return report.vms[0].slots

    assert slots(look_at_machine(os.getpid())) == slots(look_at_machine(os.getpid()))
