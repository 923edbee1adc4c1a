"""Run in the lab: a VM whose attributes mix in one frame of 2 MiB, and what a look at it sees, as JSON."""

import sys

import msgspec

import guestmem
from guestmem.host.machine import look_at_machine
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE as PRIVATE
from guestmem.units import MIB

with guestmem.open("kvm") as kvm:
    vm = kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)
    gmem = vm.create_guest_memfd(8 * MIB)
    hva = kvm.anonymous(8 * MIB, align=2 * MIB)
    vm.set_user_memory_region2(0, gpa=0, size=8 * MIB, userspace_addr=hva, guest_memfd=gmem)
    vm.set_memory_attributes(2 * MIB + 0x1000, 0x1000, PRIVATE)  # frame 1 mixes
    vm.set_memory_attributes(4 * MIB, 2 * MIB, PRIVATE)  # frame 2 is all private
    vcpu = vm.create_vcpu()
    for gpa in (0, 2 * MIB, 2 * MIB + 0x1000, 4 * MIB, 6 * MIB):
        vcpu.write(gpa, 1)
    sys.stdout.write(msgspec.json.encode([look_at_machine(None, reader) for reader in ("kcore", "bpf")]).decode())
