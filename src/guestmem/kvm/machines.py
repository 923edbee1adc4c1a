"""The vCPUs of this process and the guests they run: which descriptor is a vCPU, of which VM, with which boot memory.

A vCPU keeps its VM alive, so the extra descriptor of the VM that is held here as long as a vCPU has one changes nothing
that can be seen; it is needed to set the boot slot at the first run, when the caller may have closed its own.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from guestmem.backend import Boot, Exit, Touch
from guestmem.errors import UnexpectedExit
from guestmem.harness import BOOT_GPA, BOOT_SIZE, BOOT_SLOT
from guestmem.kvm import libc
from guestmem.kvm.files import open_device
from guestmem.kvm.guest import Guest
from guestmem.kvm.memory import Memory
from guestmem.kvm.structs import CPUID2, CPUID_ENTRY2, IOCTLS, REGION
from guestmem.kvm.vcpu import Vcpu, ioctl
from guestmem.uapi import KVM_CAP_PRE_FAULT_MEMORY, PROT_READ, PROT_WRITE

__all__ = ("Machines",)

_CPUID_ENTRIES = 256
_CPUID_ADDRESS_SIZES = 0x80000008
_SHADOW_GPA_BITS = 52  # what the page tables of a guest can express, where no hardware walks them


class _Vm:
    """A VM with vCPUs: a descriptor of it, and its guest once the backend has set one up."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.guest: Guest | None = None


class Machines:
    """vCPU descriptors, with what it takes to run them."""

    def __init__(self, memory: Memory, run_limit_s: int) -> None:
        self._memory = memory
        self._run_limit_s = run_limit_s
        self._vms: dict[int, _Vm] = {}  # by the caller's descriptors
        self._vcpus: dict[int, tuple[_Vm, Vcpu]] = {}  # likewise
        self._guests: dict[Boot, Guest] = {}
        self._properties: tuple[int, bytearray] | None = None

    def created_vm(self, fd: int) -> None:
        """A VM has this descriptor."""
        self._vms[fd] = _Vm(-1)

    def created_vcpu(self, vm_fd: int, fd: int) -> None:
        """A vCPU of the VM has this descriptor."""
        vm = self._vms[vm_fd]
        if vm.fd < 0:
            vm.fd = libc.call("dup", "dup of the VM's descriptor", vm_fd)
        self._vcpus[fd] = vm, Vcpu(self._run_limit_s)

    def duplicated(self, fd: int, copy: int) -> None:
        """``copy`` is the same open file as fd."""
        if fd in self._vms:
            self._vms[copy] = self._vms[fd]
        if fd in self._vcpus:
            self._vcpus[copy] = self._vcpus[fd]

    def closed(self, fd: int) -> None:
        """The descriptor is closed; with its last vCPU a VM loses the descriptor held here."""
        self._vms.pop(fd, None)
        vm, _ = self._vcpus.pop(fd, (None, None))
        if vm is not None and all(other is not vm for other, _ in self._vcpus.values()):
            libc.call("close", "close of the VM's descriptor", vm.fd)
            vm.fd = -1

    def unmapped(self, addr: int, length: int) -> None:
        """Guests whose boot memory was there are forgotten: what is mapped there next has no code."""
        gone = [boot for boot in self._guests if boot.hva < addr + length and addr < boot.hva + BOOT_SIZE]
        for boot in gone:
            del self._guests[boot]

    def run_touch(self, fd: int, boot: Boot | None, touches: Sequence[Touch]) -> list[list[Exit]]:
        """Make the touches; on a descriptor that is not a vCPU of this backend, KVM_RUN as it is (KvmError)."""
        vm, vcpu = self._vcpus.get(fd, (None, None))
        if vm is None or vcpu is None:
            libc.call("ioctl", f"KVM_RUN({fd=})", fd, IOCTLS["KVM_RUN"].number, 0)
            raise UnexpectedExit(f"descriptor {fd} is a vCPU that this backend did not make")
        run_size, cpuid = self._machine_properties()
        guest = self._own_guest(vm) if boot is None else self._guest_at(boot)
        return vcpu.run(fd, run_size, cpuid, guest, touches)

    def _guest_at(self, boot: Boot) -> Guest:
        if boot not in self._guests:
            self._guests[boot] = Guest(self._memory, boot)
        return self._guests[boot]

    def _own_guest(self, vm: _Vm) -> Guest:
        if vm.guest is None:
            hva = self._memory.anonymous(BOOT_SIZE, PROT_READ | PROT_WRITE, BOOT_SIZE)
            region = REGION.pack(slot=BOOT_SLOT, guest_phys_addr=BOOT_GPA, memory_size=BOOT_SIZE, userspace_addr=hva)
            ioctl(vm.fd, "KVM_SET_USER_MEMORY_REGION", region, f"slot={BOOT_SLOT}, gpa={BOOT_GPA:#x}, the boot memory")
            vm.guest = Guest(self._memory, Boot(BOOT_GPA, hva))
        return vm.guest

    def _machine_properties(self) -> tuple[int, bytearray]:
        """Size of the run area, and the CPUID that guests get."""
        if self._properties is None:
            device = open_device()
            try:
                self._properties = ioctl(device, "KVM_GET_VCPU_MMAP_SIZE"), _cpuid(device)
            finally:
                os.close(device)
        return self._properties


def _cpuid(device: int) -> bytearray:
    """What the machine supports; with shadow paging, all guest-physical bits that a page table has."""
    cpuid = bytearray(CPUID2.size + _CPUID_ENTRIES * CPUID_ENTRY2.size)
    CPUID2.set(cpuid, "nent", _CPUID_ENTRIES)
    ioctl(device, "KVM_GET_SUPPORTED_CPUID", cpuid)
    if ioctl(device, "KVM_CHECK_EXTENSION", KVM_CAP_PRE_FAULT_MEMORY):  # only offered with two-dimensional paging
        return cpuid
    for index in range(CPUID2.get(cpuid, "nent")):
        entry = memoryview(cpuid)[CPUID2.size + index * CPUID_ENTRY2.size :]
        if CPUID_ENTRY2.get(entry, "function") == _CPUID_ADDRESS_SIZES:
            CPUID_ENTRY2.set(entry, "eax", CPUID_ENTRY2.get(entry, "eax") & ~0xFF | _SHADOW_GPA_BITS)
    return cpuid
