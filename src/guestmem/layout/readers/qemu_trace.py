"""QEMU's trace event kvm_set_user_memory (``-trace kvm_set_user_memory``): every memslot ioctl with its result.

The best source where QEMU can be restarted: HVAs, flags and guest_memfd offsets are facts. 7.2 prints neither address
space nor guest_memfd; 9.x and later do. Without AddrSpace# the slot number has the address space in its upper half.
Lines of other output in between are skipped, but for QEMU's own message that the ioctl failed. A size of 0 deletes.
Left out: page sizes of the backing, names of the RAMBlocks (slots of one block are recognised by their addresses).
"""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace

from guestmem.errors import errno_name
from guestmem.layout.budget import MAX_KEPT, within
from guestmem.layout.error import LayoutError
from guestmem.layout.placement import private_assumption
from guestmem.layout.replay import SlotTable
from guestmem.layout.text import lines, number
from guestmem.layout.value import Assumption, File, Layout, RefusedCall, Slot
from guestmem.uapi import KVM_MEM_GUEST_MEMFD
from guestmem.units import MIB

__all__ = ("EVENT", "read")

EVENT = "kvm_set_user_memory "
_PID = re.compile(r"(?<!\d)(\d++)@[\d.]++:$")
_PAIR = re.compile(r"\b(\w++)[=#](-?\w+)")
# What QEMU itself prints when the ioctl fails (kvm_set_user_memory_region), whether it is traced or not.
_ERROR = re.compile(r"KVM_SET_USER_MEMORY_REGION2? failed, (slot=[^:]*+): ([\w /]++)")
_ERRNOS = {os.strerror(number): errno_name(number) for number in errno.errorcode}
_BACKING = Assumption(
    "backing",
    "page sizes of the host memory are not in the trace: they are taken as 4K, and transparent huge pages as possible",
    "--backing [REGION=]KIND[:SIZE]",
)


def read(source: str, data: bytes) -> list[Layout]:
    """The slots that are left at the end of the trace, one layout per QEMU process in it."""
    table = SlotTable()
    for line, text in lines(source, data):
        before, event, after = text.partition(EVENT)
        said = _ERROR.search(text)
        if said is not None:
            vm = next(reversed(table.vms()), "")  # the message names no process
            table.refuse(vm, _slot(source, line, _fields_of(said[1])), _ERRNOS.get(said[2].strip(), said[2]))
        if not event:
            continue
        fields = dict(_PAIR.findall(after))
        slot, ret = _slot(source, line, fields), _number(source, line, fields, "ret", "0")
        if ret == 0:
            table.set(_vm(before), slot)
            within(source, len(table), MAX_KEPT, "slots", line=line)
        elif ret < 0:
            table.refuse(_vm(before), slot, errno_name(-ret))
    layouts = [_layout(source, table.slots(vm), table.refused(vm)) for vm in table.vms()]
    if not any(layout.slots or layout.refused_calls for layout in layouts):
        raise LayoutError(source, "no slot is left at the end of the trace", remedy="trace a whole start of QEMU")
    return layouts


def _vm(before: str) -> str:
    pid = _PID.search(before)
    return pid[1] if pid else ""


def _fields_of(error: str) -> dict[str, str]:
    """The fields of QEMU's own message, by the names that its event has."""
    fields = dict(_PAIR.findall(error))
    return {"Slot": fields.get("slot", "0"), "gpa": fields.get("start", "0"), "ua": "0", "flags": "0"} | fields


def _number(source: str, line: int, fields: dict[str, str], name: str, default: str | None = None) -> int:
    text = fields.get(name, default)
    if text is None:
        raise LayoutError(source, "the line lacks it, and every line of this event has it", line=line, field=name)
    if text.startswith("-"):
        return -number(source, text[1:], 10, line=line, field=name)
    return number(source, text, 16 if text.startswith("0x") else 10, line=line, field=name)


def _slot(source: str, line: int, fields: dict[str, str]) -> Slot:
    def get(name: str, default: str | None = None) -> int:
        return _number(source, line, fields, name, default)

    fd, place = get("guest_memfd", "-1"), get("Slot")
    bound = fd >= 0 and bool(get("flags") & KVM_MEM_GUEST_MEMFD)
    return Slot(
        gpa=get("gpa"),
        size=get("size"),
        hva=get("ua") or None,
        flags=get("flags"),
        offset=get("guest_memfd_offset") if "guest_memfd_offset" in fields else None,
        file=f"fd {fd}" if bound else None,
        number=place & 0xFFFF if "AddrSpace" not in fields else place,
        address_space=get("AddrSpace", str(place >> 16)),
    )


def _layout(source: str, slots: list[Slot], refused: tuple[RefusedCall, ...]) -> Layout:
    named = _name_blocks(slots)
    private, assumed = private_assumption(named)
    files = tuple(File(name) for name in sorted({slot.file for slot in named if slot.file is not None}))
    return Layout(
        source,
        "qemu-trace",
        tuple(named),
        files,
        private,
        assumptions=(_BACKING, *assumed),
        refused_calls=refused,
        vmm="qemu",
        machine="qemu",
    )


def _name_blocks(slots: list[Slot]) -> list[Slot]:
    """Give slots of one RAMBlock one region name: where their HVAs continue, or go with the GPA over a small hole."""
    named: list[Slot] = []
    block = -1
    ordered = sorted(slots, key=lambda slot: slot.hva or 0)
    for slot in ordered:
        last = named[-1] if named else None
        base = (slot.hva or 0) - (slot.offset or 0)
        if last is None or not _continues(last, slot):
            block, start = block + 1, base if slot.offset is not None else slot.hva or 0
        offset = slot.offset if slot.offset is not None else (slot.hva or 0) - start
        named.append(replace(slot, region=f"block {block}", offset=offset))
    return named


def _continues(last: Slot, slot: Slot) -> bool:
    """Whether slot is a window on the same block as last, which lies below it in host memory."""
    last_hva, hva = last.hva or 0, slot.hva or 0
    if slot.offset is not None and last.offset is not None:
        return hva - slot.offset == last_hva - last.offset
    if hva == last_hva + last.size:
        return True
    return hva - last_hva == slot.gpa - last.gpa and 0 < hva - last_hva - last.size <= MIB
