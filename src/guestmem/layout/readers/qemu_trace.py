"""QEMU's trace event kvm_set_user_memory (``-trace kvm_set_user_memory``): every memslot ioctl with its result.

The best source where QEMU can be restarted: HVAs, flags and guest_memfd offsets are facts. 7.2 prints neither address
space nor guest_memfd; 9.x and later do. Lines of other output in between are skipped. A size of 0 deletes.
Left out: page sizes of the backing, names of the RAMBlocks (slots of one block are recognised by their addresses).
"""

from __future__ import annotations

import re
from dataclasses import replace

from guestmem.layout.budget import MAX_KEPT, within
from guestmem.layout.error import LayoutError
from guestmem.layout.placement import private_assumption
from guestmem.layout.replay import SlotTable
from guestmem.layout.text import lines, number
from guestmem.layout.value import Assumption, File, Layout, Slot
from guestmem.uapi import KVM_MEM_GUEST_MEMFD
from guestmem.units import MIB

__all__ = ("EVENT", "read")

EVENT = "kvm_set_user_memory "
_PID = re.compile(r"(?<!\d)(\d++)@[\d.]++:$")
_PAIR = re.compile(r"\b(\w++)[=#](-?\w+)")
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
        if not event:
            continue
        pid = _PID.search(before)
        slot, ret = _slot(source, line, dict(_PAIR.findall(after)))
        if ret == 0:
            table.set(pid[1] if pid else "", slot)
            within(source, len(table), MAX_KEPT, "slots", line=line)
    layouts = [_layout(source, table.slots(vm)) for vm in table.vms()]
    if not any(layout.slots for layout in layouts):
        raise LayoutError(source, "no slot is left at the end of the trace", remedy="trace a whole start of QEMU")
    return layouts


def _slot(source: str, line: int, fields: dict[str, str]) -> tuple[Slot, int]:
    def get(name: str, default: str | None = None) -> int:
        text = fields.get(name, default)
        if text is None:
            raise LayoutError(source, "the line lacks it, and every line of this event has it", line=line, field=name)
        if text.startswith("-"):
            return -number(source, text[1:], 10, line=line, field=name)
        return number(source, text, 16 if text.startswith("0x") else 10, line=line, field=name)

    fd = get("guest_memfd", "-1")
    bound = fd >= 0 and bool(get("flags") & KVM_MEM_GUEST_MEMFD)
    slot = Slot(
        gpa=get("gpa"),
        size=get("size"),
        hva=get("ua"),
        flags=get("flags"),
        offset=get("guest_memfd_offset") if "guest_memfd_offset" in fields else None,
        file=f"fd {fd}" if bound else None,
        number=get("Slot"),
        address_space=get("AddrSpace", "0"),
    )
    return slot, get("ret", "0")


def _layout(source: str, slots: list[Slot]) -> Layout:
    named = _name_blocks(slots)
    private, assumed = private_assumption(named)
    files = tuple(File(name) for name in sorted({slot.file for slot in named if slot.file is not None}))
    return Layout(
        source, "qemu-trace", tuple(named), files, private, assumptions=(_BACKING, *assumed), vmm="qemu", machine="qemu"
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
