"""Slots that KVM refuses: those of the layout that it would refuse, and calls of the source that it did refuse."""

from __future__ import annotations

from collections.abc import Iterator

from guestmem.errors import KvmError
from guestmem.layout.coverage import Coverage
from guestmem.layout.findings.value import Finding
from guestmem.layout.refusal import is_by_rule
from guestmem.layout.replayed import why_refused
from guestmem.layout.value import RefusedCall, Slot
from guestmem.units import align_up, format_size

__all__ = ("find_refused",)

# The check that refuses -> what to do about it, where it is not about a value that must be aligned.
_REMEDIES = {
    "binding-free": "bind each range of the file once: leave this slot out (QEMU: no SMM), or without a file",
    "gpa-free": "move one of the two, or delete the other one first",
    "flags-valid": "set only flags that the VM has; GUEST_MEMFD goes neither with READONLY nor with LOG_DIRTY_PAGES",
    "guest-memfd-immutable": "delete the slot first: one with a guest_memfd cannot be changed",
    "only-gpa-and-dirty-log-change": "delete the slot first: only its GPA and its dirty logging can be changed",
}


def find_refused(coverage: Coverage) -> Iterator[Finding]:
    """refused, for slots of the layout and for calls that failed."""
    for index, why in coverage.refused.items():
        if is_by_rule(why):
            continue
        slot = coverage.layout.slots[index]
        message = f"{_where(slot)}: KVM refuses the slot with {why.name} [{why.check}]: {why.reason}"
        remedy = f"{_mended(coverage, slot, why)}; until then nothing of the slot is mapped"
        lost = tuple((size, slot.size) for size in coverage.host.sizes)
        yield Finding("refused", "error", message, remedy, (index,), lost)
    for call in coverage.layout.refused_calls:
        yield _of_call(coverage, call)


def _of_call(coverage: Coverage, call: RefusedCall) -> Finding:
    slot, why = call.slot, why_refused(call, coverage.host)
    number = "a slot" if slot.number is None else f"slot {slot.number}"
    of = f" of {slot.region}" if slot.region else ""
    message = f"{number}{of}, {format_size(slot.size)} at GPA {slot.gpa:#x}: KVM refused it with {call.errno}"
    if why is not None:
        then = "" if why.name == call.errno else f" ({why.name} where kernel and VM are those asked about)"
        return Finding("refused", "error", f"{message}{then} [{why.check}]: {why.reason}", _mended(coverage, slot, why))
    if slot.readonly:
        message += f": flags={slot.flags:#x} has READONLY, which VMs with protected state (SNP, TDX) do not have"
        return Finding("refused", "error", message, "load the firmware with -bios instead of a read-only pflash drive")
    message += ": the model takes this call after the calls before it, so the cause is not among the checks it knows"
    remedy = "give the kernel of that host with --profile; other causes are memory and the type of the VM"
    return Finding("refused", "error", message, remedy)


def _where(slot: Slot) -> str:
    return f"{slot.region} at GPA {slot.gpa:#x}" if slot.region else slot.name


def _mended(coverage: Coverage, slot: Slot, why: KvmError) -> str:
    """What to set so that KVM takes the slot: the values that must be aligned, else what the check is about."""
    page_size = coverage.host.sizes[0]
    values = {
        "guest_phys_addr": slot.gpa,
        "memory_size": slot.size or 1,
        "userspace_addr": slot.hva or 0,
        "guest_memfd_offset": (slot.offset or 0) if slot.guest_memfd else 0,
    }
    odd = [name for name, value in values.items() if value % page_size]
    if odd == ["memory_size"] and slot.size:
        return f"make memory_size {align_up(slot.size, page_size)}, a multiple of {format_size(page_size)}"
    if odd:
        return f"align {', '.join(odd)} to {format_size(page_size)}"
    return _REMEDIES.get(why.check, "change the value that KVM refuses")
