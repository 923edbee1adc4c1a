"""ioctls on a VM."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from guestmem.exec.calls.arguments import REQUEST, argument, fetch
from guestmem.exec.calls.device import CHECK_EXTENSION, check_extension
from guestmem.exec.emulated import FileObject, Give, Result, VmObject
from guestmem.exec.listener import ProgramCall
from guestmem.uapi import KVM_MEM_GUEST_MEMFD

if TYPE_CHECKING:
    from guestmem.exec.supervisor import Supervisor

__all__ = ("TABLE",)

Handler = Callable[["Supervisor", VmObject, ProgramCall], Result]

_REGION: Final = struct.Struct("<IIQQQ")
_REGION2: Final = struct.Struct("<IIQQQQII14Q")
_ATTRIBUTES: Final = struct.Struct("<4Q")
_CREATE_FILE: Final = struct.Struct("<8Q")
_ENABLE_CAP: Final = struct.Struct("<II4Q64x")
_TSC_KHZ: Final = 2_000_000
_CAP_EXIT_HYPERCALL: Final = 201
_MAP_GPA_RANGE: Final = 1 << 12
_NOT_OPEN: Final = 1 << 30


def _create_vcpu(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    return Give(supervisor.new_vcpu(vm, argument(call) & 0xFFFFFFFF), supervisor.CLOSE_ON_EXEC)


def _create_guest_memfd(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    size, flags, *reserved = fetch(call, _CREATE_FILE)
    return Give(supervisor.new_guest_memfd(vm, size, flags, reserved), supervisor.CLOSE_ON_EXEC)


def _set_region(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    slot, flags, gpa, size, address = fetch(call, _REGION)
    vm.space.backend.set_user_memory_region(vm.fd, slot, flags, gpa, size, address)
    _to_be_shared(vm, address, size)
    return 0


def _set_region2(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    slot, flags, gpa, size, address, offset, file, pad1, *pad2 = fetch(call, _REGION2)
    fd = _descriptor(supervisor, vm, call, file) if flags & KVM_MEM_GUEST_MEMFD else file
    vm.space.backend.set_user_memory_region2(vm.fd, slot, flags, gpa, size, address, fd, offset, pad1, pad2)
    _to_be_shared(vm, address, size)
    return 0


def _descriptor(supervisor: Supervisor, vm: VmObject, call: ProgramCall, number: int) -> int:
    """What the backend is to take for a descriptor of the program."""
    found = supervisor.find(call.tid, number)
    if found is None:
        return vm.space.not_ours if supervisor.is_open(call.tid, number) else _NOT_OPEN
    if found.space is not vm.space:
        return vm.space.not_ours
    return found.fd if isinstance(found, FileObject) or found.fd >= 0 else vm.space.not_ours


def _to_be_shared(vm: VmObject, address: int, size: int) -> None:
    if size:
        vm.waiting.set(address, address + size, True)


def _set_attributes(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    address, size, attributes, flags = fetch(call, _ATTRIBUTES)
    vm.space.backend.set_memory_attributes(vm.fd, address, size, attributes, flags)
    return 0


def _enable_cap(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    cap, flags, *arguments = fetch(call, _ENABLE_CAP)
    if cap == _CAP_EXIT_HYPERCALL:
        if flags or arguments[0] & ~_MAP_GPA_RANGE:
            return -errno.EINVAL
        vm.hypercall_exits = arguments[0]
        return 0
    vm.space.backend.enable_cap(vm.fd, cap, arguments, flags)
    return 0


def _check_extension(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    return check_extension(supervisor, vm.fd, vm, call)


def _statistics(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    return Give(supervisor.new_statistics(vm, vm.space), supervisor.CLOSE_ON_EXEC)


def _accepted(supervisor: Supervisor, vm: VmObject, call: ProgramCall) -> Result:
    """What sets up devices or the host's own bookkeeping: nothing about memory depends on it."""
    return 0


TABLE: Final[Mapping[int, Handler]] = MappingProxyType(
    {
        CHECK_EXTENSION: _check_extension,
        REQUEST(0x41): _create_vcpu,
        REQUEST(0x44): _accepted,  # KVM_SET_NR_MMU_PAGES
        REQUEST(0x46, 1, 32): _set_region,
        REQUEST(0x47): _accepted,  # KVM_SET_TSS_ADDR
        REQUEST(0x48, 1, 8): _accepted,  # KVM_SET_IDENTITY_MAP_ADDR
        REQUEST(0x49, 1, 160): _set_region2,
        REQUEST(0x60): _accepted,  # KVM_CREATE_IRQCHIP
        REQUEST(0x77, 1, 64): _accepted,  # KVM_CREATE_PIT2
        REQUEST(0xA3, 1, 104): _enable_cap,
        REQUEST(0xA3): lambda supervisor, vm, call: _TSC_KHZ,  # KVM_GET_TSC_KHZ
        REQUEST(0xCE): _statistics,
        REQUEST(0xD2, 1, 32): _set_attributes,
        REQUEST(0xD4, 3, 64): _create_guest_memfd,
    }
)
