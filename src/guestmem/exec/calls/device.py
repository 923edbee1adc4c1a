"""ioctls on /dev/kvm."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from guestmem.exec import peer
from guestmem.exec.calls.arguments import REQUEST, argument, store
from guestmem.exec.emulated import DeviceObject, Emulated, Give, Result
from guestmem.exec.listener import ProgramCall
from guestmem.exec.vcpu import cpuid
from guestmem.exec.vcpu.run import RUN_SIZE
from guestmem.exec.vcpu.state import CPUID_ENTRY

if TYPE_CHECKING:
    from guestmem.exec.supervisor import Supervisor

__all__ = ("CHECK_EXTENSION", "TABLE", "check_extension", "store_cpuid")

_API_VERSION: Final = 12
_MAX_VCPUS: Final = 1024  # KVM_MAX_VCPUS, by configuration: a quarter of the ids
CHECK_EXTENSION: Final = REQUEST(0x03)
Handler = Callable[["Supervisor", DeviceObject, ProgramCall], Result]

# Capabilities that programs insist on and that say nothing about memory, so that the model leaves them out.
_OTHER_CAPABILITIES: Final[Mapping[int, int]] = MappingProxyType(
    {
        0: 1,  # KVM_CAP_IRQCHIP
        1: 1,  # KVM_CAP_HLT
        4: 1,  # KVM_CAP_SET_TSS_ADDR
        9: _MAX_VCPUS,  # KVM_CAP_NR_VCPUS
        11: 1,  # KVM_CAP_NOP_IO_DELAY
        14: 1,  # KVM_CAP_MP_STATE
        61: 1,  # KVM_CAP_GET_TSC_KHZ
        66: _MAX_VCPUS,  # KVM_CAP_MAX_VCPUS
        136: 1,  # KVM_CAP_IMMEDIATE_EXIT
        201: 1 << 12,  # KVM_CAP_EXIT_HYPERCALL: KVM_HC_MAP_GPA_RANGE
        203: 1,  # KVM_CAP_BINARY_STATS_FD
    }
)


def check_extension(supervisor: Supervisor, fd: int, object: Emulated, call: ProgramCall) -> int:
    """KVM_CHECK_EXTENSION on /dev/kvm or a VM, by its descriptor in the backend."""
    number = argument(call) & 0xFFFFFFFF
    return object.space.backend.check_extension(fd, number) or _OTHER_CAPABILITIES.get(number, 0)


def _check_extension(supervisor: Supervisor, device: DeviceObject, call: ProgramCall) -> Result:
    return check_extension(supervisor, device.space.kvm, device, call)


def _create_vm(supervisor: Supervisor, device: DeviceObject, call: ProgramCall) -> Result:
    return Give(supervisor.new_vm(supervisor.space_of(call.tid), argument(call)), supervisor.CLOSE_ON_EXEC)


def _supported_cpuid(supervisor: Supervisor, device: DeviceObject, call: ProgramCall) -> Result:
    return store_cpuid(call, cpuid.supported(device.space.process.machine.gpa_bits))


def _no_indexes(supervisor: Supervisor, device: DeviceObject, call: ProgramCall) -> Result:
    """KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST: there are none."""
    store(call, struct.pack("<I", 0))
    return 0


def store_cpuid(call: ProgramCall, entries: bytes) -> int:
    """struct kvm_cpuid2 with entries; E2BIG where the program has no room for them."""
    (room,) = struct.unpack("<I", peer.fetch(call.tid, argument(call), 4))
    count = len(entries) // CPUID_ENTRY.size
    if room < count:
        return -errno.E2BIG
    store(call, struct.pack("<II", count, 0) + entries)
    return 0


TABLE: Final[Mapping[int, Handler]] = MappingProxyType(
    {
        REQUEST(0x00): lambda supervisor, device, call: _API_VERSION,
        REQUEST(0x01): _create_vm,
        REQUEST(0x02, 3, 4): _no_indexes,
        CHECK_EXTENSION: _check_extension,
        REQUEST(0x04): lambda supervisor, device, call: RUN_SIZE,
        REQUEST(0x05, 3, 8): _supported_cpuid,
        REQUEST(0x0A, 3, 4): _no_indexes,
    }
)
