"""guestmem recordings (JSON Lines): the slots that are left when a sequence ends.

Operations that failed change nothing; one without an outcome counts as done unless it collides with a standing slot.
Host buffers are 2 MiB aligned by the recording's convention, so their HVAs are known modulo 2M only. Left out: what
faults, host accesses and other operations did, and VMs that have no slot left at the end.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace

from guestmem.harness import PAGE_SIZE
from guestmem.layout.budget import Budget
from guestmem.layout.error import LayoutError
from guestmem.layout.placement import ALIGNED_BASE, hva_assumption
from guestmem.layout.replay import SlotTable, with_attribute
from guestmem.layout.value import Backing, File, Layout, Range, Slot
from guestmem.recordings.calls import Close, Dup, Mmap, Munmap
from guestmem.recordings.ioctls import CreateGuestMemfd, SetMemoryAttributes, SetUserMemoryRegion, SetUserMemoryRegion2
from guestmem.recordings.operation import Handle, HostAddress, Operation
from guestmem.recordings.reader import RecordingError, Sequence, sequences_in
from guestmem.uapi import GUEST_MEMFD_FLAG_HUGETLB, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE
from guestmem.units import U64

__all__ = ("read",)


@dataclass(slots=True)
class _State:
    """What is there while the operations of one sequence are read."""

    table: SlotTable = field(default_factory=SlotTable)
    files: dict[Handle, File] = field(default_factory=dict)  # by handle; a dup is another handle of the same file
    maps: dict[str, File] = field(default_factory=dict)  # mappings of guest_memfds, which hold the file
    private: dict[str, list[Range]] = field(default_factory=dict)


def read(source: str, data: bytes) -> list[Layout]:
    """One layout per VM that has slots at the end of its sequence."""
    budget = Budget(source)
    try:
        found = [
            budget.take(layout)
            for sequence in sequences_in(io.BytesIO(data), source)
            for layout in _layouts(source, sequence)
        ]
    except RecordingError as error:
        raise LayoutError(source, error.problem, line=error.line) from None
    if not found:
        raise LayoutError(source, "no VM of this recording has a slot at its end")
    return found


def _layouts(source: str, sequence: Sequence) -> list[Layout]:
    state = _State()
    for operation in sequence.operations:
        if not isinstance(operation.errno, str):
            _apply(state, operation)
    return [
        _layout(f"{source}#{sequence.begin.seq}/{vm}", state, vm) for vm in state.table.vms() if state.table.slots(vm)
    ]


def _apply(state: _State, operation: Operation) -> None:
    match operation:
        case SetUserMemoryRegion() | SetUserMemoryRegion2():
            _set(state, operation)
        case SetMemoryAttributes(vm=str(vm), address=start, size=size, attributes=attributes):
            if start + size < U64:
                private = bool(attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE)
                state.private[vm] = with_attribute(state.private.get(vm, ()), Range(start, start + size), private)
        case CreateGuestMemfd(out=out):
            state.files[out] = File(out, operation.size, operation.flags, _page_size(operation))
        case Dup(fd=fd, out=out) if fd in state.files:
            state.files[out] = state.files[fd]
        case Mmap(fd=fd, out=out) if fd in state.files:
            state.maps[out] = state.files[fd]
        case Munmap(map=name):
            state.maps.pop(name, None)
        case Close(fd=fd):
            state.files.pop(fd, None)


def _page_size(operation: CreateGuestMemfd) -> int:
    """The page size of a file of hugetlb pages (profile next), or 0."""
    if not operation.flags & GUEST_MEMFD_FLAG_HUGETLB or not operation.reserved:
        return 0
    order: int = operation.reserved[0] & 0xFF
    return PAGE_SIZE << order if order < 64 else 0


def _set(state: _State, operation: SetUserMemoryRegion | SetUserMemoryRegion2) -> None:
    slot = _placed(
        Slot(
            gpa=operation.gpa,
            size=operation.size,
            flags=operation.flags,
            backing=Backing("anonymous"),
            number=operation.slot & 0xFFFF,
            address_space=operation.slot >> 16,
        ),
        operation.userspace_addr,
    )
    if isinstance(operation, SetUserMemoryRegion2) and operation.flags & KVM_MEM_GUEST_MEMFD:
        file = state.files.get(operation.guest_memfd)
        if file is not None:
            slot = replace(slot, region=file.name, file=file.name, offset=operation.guest_memfd_offset)
    vm = str(operation.vm)
    if slot.size == 0 or not state.table.collides(vm, slot):
        state.table.set(vm, slot)


def _placed(slot: Slot, where: HostAddress) -> Slot:
    """The slot with its userspace_addr: a number, or an offset into a buffer or mapping at an unknown place."""
    if where.abs is not None:
        return replace(slot, hva=where.abs)
    name = f"buf {where.buf}" if where.buf else f"map {where.map}"
    return replace(slot, assumed_hva=ALIGNED_BASE + where.off, region=name, offset=where.off)


def _layout(source: str, state: _State, vm: str) -> Layout:
    alive = {file.name for file in (*state.files.values(), *state.maps.values())}
    slots = [
        slot if slot.file is None or slot.file in alive else replace(slot, file=None, region=f"{slot.file} (closed)")
        for slot in state.table.slots(vm)
    ]
    buffers = list(dict.fromkeys(slot.region for slot in slots if slot.hva is None and slot.file is None))
    notes = [hva_assumption(buffers, "aligned to 2M plus the offset, as recordings are played")] if buffers else []
    files = {file.name: file for file in (*state.files.values(), *state.maps.values())}
    return Layout(
        source,
        "recording",
        tuple(slots),
        files=tuple(files.values()),
        private=tuple(state.private.get(vm, ())),
        assumptions=tuple(notes),
    )
