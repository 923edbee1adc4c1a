"""ioctls on a vCPU."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from guestmem.exec import peer
from guestmem.exec.calls.arguments import REQUEST, argument, fetch, store
from guestmem.exec.calls.device import store_cpuid
from guestmem.exec.emulated import AGAIN, Give, Result, VcpuObject
from guestmem.exec.listener import ProgramCall
from guestmem.exec.vcpu.run import AskAgain
from guestmem.exec.vcpu.state import CPUID_ENTRY, GENERAL, SREGS_SIZE

if TYPE_CHECKING:
    from guestmem.exec.supervisor import Supervisor

__all__ = ("RUN", "TABLE")

Handler = Callable[["Supervisor", VcpuObject, ProgramCall], Result]

RUN: Final = REQUEST(0x80)
_COUNT: Final = struct.Struct("<I")
_PRE_FAULT: Final = struct.Struct("<8Q")
_MSR: Final = struct.Struct("<I4xQ")
_MSRS_HEAD, _CPUID_HEAD = 8, 8
_MOST_MSRS: Final = 256  # MAX_IO_MSRS
_MOST_LEAVES: Final = 256  # KVM_MAX_CPUID_ENTRIES
_EVENTS_SIZE: Final = 64


def _run(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    """KVM_RUN, in the vCPU's own thread."""
    if vcpu.undelivered is not None and not vcpu.run[1]:
        result, vcpu.undelivered = vcpu.undelivered, None
        return result
    if supervisor.share(vcpu.owner, call):
        return AGAIN
    vcpu.cpu.hypercall_exits = vcpu.owner.hypercall_exits
    try:
        return vcpu.cpu.run(lambda: supervisor.listener.is_waiting(call.id))
    except AskAgain as missing:
        vcpu.owner.waiting.set(missing.start, missing.end, True)
        return AGAIN if supervisor.share(vcpu.owner, call) else vcpu.cpu.end_without_page()


def _pre_fault(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    if supervisor.share(vcpu.owner, call):
        return AGAIN
    gpa, size, flags, *_ = fetch(call, _PRE_FAULT)
    answer = vcpu.space.backend.pre_fault_memory(vcpu.fd, gpa, size, flags)
    store(call, struct.pack("<QQ", answer.gpa, answer.size))
    return -(answer.refused.errno or errno.EIO) if answer.refused else 0


def _get_regs(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    store(call, vcpu.cpu.get_general())
    return 0


def _set_regs(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    vcpu.cpu.set_general(peer.fetch(call.tid, argument(call), GENERAL.size))
    return 0


def _get_sregs(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    store(call, vcpu.cpu.get_system())
    return 0


def _set_sregs(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    vcpu.cpu.set_system(peer.fetch(call.tid, argument(call), SREGS_SIZE))
    return 0


def _set_cpuid(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    (count,) = fetch(call, _COUNT)
    if count > _MOST_LEAVES:
        return -errno.E2BIG
    size = CPUID_ENTRY.size * count
    vcpu.cpu.state.set_cpuid(peer.fetch(call.tid, argument(call) + _CPUID_HEAD, size) if size else b"")
    return 0


def _get_cpuid(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    return store_cpuid(call, vcpu.cpu.state.cpuid)


def _get_mp_state(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    store(call, _COUNT.pack(vcpu.cpu.state.mp_state))
    return 0


def _set_mp_state(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    (vcpu.cpu.state.mp_state,) = fetch(call, _COUNT)
    return 0


def _get_msrs(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    """Every MSR is there and holds what was stored."""
    entries = _msrs(call)
    if entries is None:
        return -errno.E2BIG
    msrs = vcpu.cpu.state.msrs
    store(call, b"".join(_MSR.pack(index, msrs.get(index, 0)) for index, _ in entries), _MSRS_HEAD)
    return len(entries)


def _set_msrs(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    entries = _msrs(call)
    if entries is None:
        return -errno.E2BIG
    vcpu.cpu.state.msrs.update(entries)
    return len(entries)


def _msrs(call: ProgramCall) -> list[tuple[int, int]] | None:
    (count,) = fetch(call, _COUNT)
    if count >= _MOST_MSRS:
        return None
    data = peer.fetch(call.tid, argument(call) + _MSRS_HEAD, _MSR.size * count) if count else b""
    return [(index, value) for index, value in _MSR.iter_unpack(data)]


def _get_events(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    store(call, bytes(_EVENTS_SIZE))
    return 0


def _statistics(supervisor: Supervisor, vcpu: VcpuObject, call: ProgramCall) -> Result:
    return Give(supervisor.new_statistics(None, vcpu.space), supervisor.CLOSE_ON_EXEC)


TABLE: Final[Mapping[int, Handler]] = MappingProxyType(
    {
        RUN: _run,
        REQUEST(0x81, 2, GENERAL.size): _get_regs,
        REQUEST(0x82, 1, GENERAL.size): _set_regs,
        REQUEST(0x83, 2, SREGS_SIZE): _get_sregs,
        REQUEST(0x84, 1, SREGS_SIZE): _set_sregs,
        REQUEST(0x88, 3, 8): _get_msrs,
        REQUEST(0x89, 1, 8): _set_msrs,
        REQUEST(0x90, 1, 8): _set_cpuid,
        REQUEST(0x91, 3, 8): _get_cpuid,
        REQUEST(0x98, 2, 4): _get_mp_state,
        REQUEST(0x99, 1, 4): _set_mp_state,
        REQUEST(0x9F, 2, _EVENTS_SIZE): _get_events,
        REQUEST(0xA0, 1, _EVENTS_SIZE): lambda supervisor, vcpu, call: 0,  # KVM_SET_VCPU_EVENTS
        REQUEST(0xCE): _statistics,
        REQUEST(0xD5, 3, 64): _pre_fault,
    }
)
