"""guestmem recordings (JSON Lines): the slots that stand when a sequence ends.

Operations that failed change nothing; one without an outcome counts as done unless it collides with a standing slot.
Host buffers are 2 MiB aligned by the recording's convention, so their HVAs are known modulo 2M only. Left out: what
faults, host accesses and other operations did, and slots of VMs that had none left at the end.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from guestmem.layout.error import LayoutError
from guestmem.layout.readers.placement import ALIGNED_BASE, hva_assumption
from guestmem.layout.readers.slot_table import SlotTable
from guestmem.layout.readers.text import convert, decode_json, lines
from guestmem.layout.value import Backing, File, Layout, Range, Slot, merged
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE
from guestmem.units import U64

__all__ = ("read",)


class _Op(msgspec.Struct):
    """The fields of a line that matter here; the rest of the vocabulary is ignored."""

    op: str
    seq: str = ""
    out: str | None = None
    errno: str | None = None
    vm: str | None = None
    fd: str | int | None = None
    map: str | None = None
    slot: int = 0
    flags: int = 0
    gpa: int = 0
    size: int = 0
    address: int = 0
    attributes: int = 0
    offset: int = 0
    guest_memfd: str | int | None = None
    guest_memfd_offset: int = 0
    userspace_addr: dict[str, Any] | None = None
    page_size: int = 0


@dataclass(slots=True)
class _Sequence:
    name: str
    table: SlotTable = field(default_factory=SlotTable)
    files: dict[str, File] = field(default_factory=dict)  # by handle; a dup is another handle of the same file
    maps: dict[str, File] = field(default_factory=dict)  # mappings of guest_memfds, which hold the file
    private: dict[str, list[Range]] = field(default_factory=dict)


def read(source: str, data: bytes) -> list[Layout]:
    """One layout per VM that has slots at the end of its sequence."""
    sequences: dict[str, _Sequence] = {}
    for line, text in lines(source, data):
        if not text.strip():
            continue
        op = convert(source, decode_json(source, text.encode(), line=line), _Op, line=line)
        if op.op == "begin":
            sequences[op.seq] = _Sequence(op.seq)
        elif op.errno is None:
            _apply(source, line, sequences.setdefault(op.seq, _Sequence(op.seq)), op)
    found = [
        _layout(source, sequence, vm)
        for sequence in sequences.values()
        for vm in sequence.table.vms()
        if sequence.table.slots(vm)
    ]
    if not found:
        raise LayoutError(source, "no VM of this recording has a slot at its end")
    return found


def _apply(source: str, line: int, sequence: _Sequence, op: _Op) -> None:
    if op.op in ("set_user_memory_region", "set_user_memory_region2"):
        _set(source, line, sequence, op)
    elif op.op == "set_memory_attributes":
        _attributes(sequence, op)
    elif op.op == "create_guest_memfd" and op.out:
        sequence.files[op.out] = File(op.out, op.size, op.flags, op.page_size)
    elif op.op == "dup" and op.out and isinstance(op.fd, str) and op.fd in sequence.files:
        sequence.files[op.out] = sequence.files[op.fd]
    elif op.op == "mmap" and op.out and isinstance(op.fd, str) and op.fd in sequence.files:
        sequence.maps[op.out] = sequence.files[op.fd]
    elif op.op == "munmap" and op.map:
        sequence.maps.pop(op.map, None)
    elif op.op == "close" and isinstance(op.fd, str):
        sequence.files.pop(op.fd, None)


def _set(source: str, line: int, sequence: _Sequence, op: _Op) -> None:
    if op.vm is None or not (0 <= op.gpa < U64 and 0 <= op.size < U64 and 0 <= op.guest_memfd_offset < U64):
        raise LayoutError(source, "needed a VM and 64-bit numbers", line=line, field=op.op)
    bound = op.op.endswith("2") and bool(op.flags & KVM_MEM_GUEST_MEMFD)
    file = sequence.files.get(op.guest_memfd) if bound and isinstance(op.guest_memfd, str) else None
    hva, assumed, region, offset = _address(op.userspace_addr or {})
    slot = Slot(
        gpa=op.gpa,
        size=op.size,
        hva=hva,
        assumed_hva=assumed,
        flags=op.flags,
        region=file.name if file else region,
        offset=op.guest_memfd_offset if file else offset,
        file=file.name if file else None,
        backing=Backing("anonymous"),
        number=op.slot & 0xFFFF,
        address_space=op.slot >> 16,
    )
    if slot.size == 0 or not sequence.table.collides(op.vm, slot):
        sequence.table.set(op.vm, slot)


def _address(where: dict[str, Any]) -> tuple[int | None, int | None, str, int | None]:
    """hva, assumed hva, region and offset of a userspace_addr."""
    off = where.get("off", 0)
    off = off if isinstance(off, int) and 0 <= off < U64 else 0
    for kind in ("buf", "map"):
        if isinstance(where.get(kind), str):
            return None, ALIGNED_BASE + off, f"{kind} {where[kind]}", off
    absolute = where.get("abs", 0)
    return (absolute if isinstance(absolute, int) and 0 <= absolute < U64 else 0), None, "", None


def _attributes(sequence: _Sequence, op: _Op) -> None:
    start, end = op.address, op.address + op.size
    if op.vm is None or not 0 <= start < end < U64:
        return
    runs = sequence.private.setdefault(op.vm, [])
    parts = (
        part for run in runs for part in (Range(run.start, min(run.end, start)), Range(max(run.start, end), run.end))
    )
    kept = list(parts)
    if op.attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
        kept.append(Range(start, end))
    sequence.private[op.vm] = list(merged(kept))


def _layout(source: str, sequence: _Sequence, vm: str) -> Layout:
    alive = {file.name for file in (*sequence.files.values(), *sequence.maps.values())}
    slots = [slot if slot.file is None or slot.file in alive else _closed(slot) for slot in sequence.table.slots(vm)]
    buffers = list(dict.fromkeys(slot.region for slot in slots if slot.hva is None and slot.file is None))
    notes = [hva_assumption(buffers, "as 2M-aligned plus the offset, the recording's convention")] if buffers else []
    return Layout(
        f"{source}#{sequence.name}/{vm}",
        "recording",
        tuple(slots),
        files=tuple({file.name: file for file in sequence.files.values()}.values()),
        private=tuple(sequence.private.get(vm, ())),
        assumptions=tuple(notes),
    )


def _closed(slot: Slot) -> Slot:
    """A slot whose file is closed: it keeps its place and flag, but private pages have nowhere to come from."""
    return Slot(
        gpa=slot.gpa,
        size=slot.size,
        hva=slot.hva,
        flags=slot.flags,
        region=f"{slot.region} (closed)",
        offset=slot.offset,
        backing=slot.backing,
        number=slot.number,
        address_space=slot.address_space,
        assumed_hva=slot.assumed_hva,
    )
