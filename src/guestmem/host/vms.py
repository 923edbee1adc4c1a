"""Finding the VMs of the machine, and what struct kvm says of each.

With the symbol ``vm_list`` the kernel's own list is walked. Without it each descriptor of a VM is copied into this
process for as long as the VM is looked at (pidfd_getfd), and the structure is found through this process's own
descriptor table; that keeps the VM from being destroyed meanwhile, and the copy is closed right after.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from guestmem.host import calls
from guestmem.host.kernel import KernelView
from guestmem.host.memory import u64, walk_list
from guestmem.host.processes import Processes

__all__ = ("Counters", "Vm", "find_vms", "read_counters")

_MOST_VMS = 100_000


@dataclass(frozen=True, slots=True)
class Vm:
    """A VM: the address of its struct kvm, the process that made it, and its type (KVM_CREATE_VM's; None: no types)."""

    address: int
    pid: int
    type: int | None


@dataclass(frozen=True, slots=True)
class Counters:
    """How many leaves of each size KVM counts for a VM (the statistics pages_4k, pages_2m, pages_1g)."""

    pages_4k: int
    pages_2m: int
    pages_1g: int


def find_vms(kernel: KernelView, processes: Processes, pid: int | None = None) -> Iterator[Vm]:
    """Every VM, or those of one process. What is found by descriptor is held only until the next is asked for."""
    if "vm_list" in kernel.symbols:
        for address in list(
            walk_list(kernel.memory, kernel.symbols["vm_list"], kernel.structs.offset("kvm.vm_list"), _MOST_VMS)
        ):
            vm = _vm(kernel, address, processes)
            if pid is None or vm.pid == pid:
                yield vm
        return
    seen = set()
    for holder, fd in processes.vm_descriptors(pid):
        try:
            copy = calls.pidfd_getfd(holder, fd)
        except OSError:
            continue  # the process is gone, or not ours to see
        try:
            address = _struct_of(kernel, copy)
            if address not in seen:
                seen.add(address)
                yield _vm(kernel, address, processes)
        finally:
            with suppress(OSError):
                os.close(copy)


def read_counters(kernel: KernelView, vm: int) -> Counters:
    """KVM's own count of leaves."""
    return Counters(
        *(kernel.pointer(vm + kernel.structs.offset(f"kvm.stat.pages_{size}")) for size in ("4k", "2m", "1g"))
    )


def _vm(kernel: KernelView, address: int, processes: Processes) -> Vm:
    creator = kernel.memory.read(address + kernel.structs.offset("kvm.userspace_pid"), 4)
    thread: int = struct.unpack("<i", creator)[0]
    kind = None
    if kernel.structs.has("kvm.arch.vm_type"):
        kind = kernel.memory.read(address + kernel.structs.offset("kvm.arch.vm_type"), 1)[0]
    return Vm(address, processes.process_of(thread) or thread, kind)


def _struct_of(kernel: KernelView, fd: int) -> int:
    """The struct kvm behind a descriptor of this process."""
    if kernel.current_task is None:
        raise ValueError("this reader cannot tell which task reads")
    structs = kernel.structs
    files = kernel.pointer(kernel.current_task() + structs.offset("task_struct.files"))
    table = kernel.pointer(files + structs.offset("files_struct.fdt"))
    descriptors = u64(kernel.memory.read(table + structs.offset("fdtable.fd"), 8))
    return kernel.pointer(kernel.pointer(descriptors + 8 * fd) + structs.offset("file.private_data"))
