"""Why KVM refused a call that a source shows: the model is asked for the same call, with the slots there were before.

The model takes the kernel that the check is for. What a source does not say is as in ``refusal``: files are as large as
files can be, user space has five-level paging. A VM of the source may be of a type that the model does not know (SNP,
TDX); so an answer that the model would not give is an answer too.
"""

from __future__ import annotations

from contextlib import suppress

from guestmem.errors import KvmError
from guestmem.layout.coverage import HostLimits
from guestmem.layout.refusal import machine_of
from guestmem.layout.value import RefusedCall, Slot
from guestmem.model.process import Process
from guestmem.model.profiles import NEWEST
from guestmem.uapi import KVM_X86_DEFAULT_VM, KVM_X86_SW_PROTECTED_VM
from guestmem.units import S64_MAX, align_down

__all__ = ("why_refused",)


def why_refused(call: RefusedCall, host: HostLimits) -> KvmError | None:
    """The check that refuses the call on the model, with its values; None where the model takes it."""
    machine = machine_of(host.geometry)
    other_space = any(slot.address_space for slot in (call.slot, *call.before))
    with Process(host.profile or NEWEST, machine) as process:
        vm = process.create_vm(process.open_kvm(), KVM_X86_DEFAULT_VM if other_space else KVM_X86_SW_PROTECTED_VM)
        files: dict[str, int] = {}
        for slot in call.before:
            with suppress(KvmError):  # another kernel took it
                _set(process, vm, slot, files)
        try:
            _set(process, vm, call.slot, files)
        except KvmError as refused:
            return refused.with_traceback(None)
    return None


def _set(process: Process, vm: int, slot: Slot, files: dict[str, int]) -> None:
    fd = -1
    if slot.file is not None:
        if slot.file not in files:
            files[slot.file] = process.create_guest_memfd(vm, align_down(S64_MAX, process.page_size), 0)
        fd = files[slot.file]
    place = slot.address_space << 16 | (slot.number or 0)
    process.set_user_memory_region2(
        vm, place, slot.flags, slot.gpa, slot.size, slot.hva or 0, fd, slot.offset or 0 if slot.file else 0
    )
