"""What the debugger script of the samples prints: the structures of the memory ioctls, eight 64-bit words each.

``IOCTL fd=N cmd=0x...`` and the words at the argument, which is the way to see guest_memfd slots that strace cannot
show. The script stops before the call, so results are unknown: calls that KVM would refuse by the slots set so far are
left out, and descriptors of guest_memfds are matched to their creation in order. Both are stated as assumptions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from guestmem.layout.budget import MAX_KEPT, within
from guestmem.layout.error import LayoutError
from guestmem.layout.replay import SlotTable, with_attribute
from guestmem.layout.text import lines
from guestmem.layout.value import Assumption, File, Layout, Range, Slot
from guestmem.uapi import IOCTL_NUMBERS, KVM_MEM_GUEST_MEMFD, KVM_MEMORY_ATTRIBUTE_PRIVATE
from guestmem.units import U64

__all__ = ("MARK", "read")

MARK = "IOCTL fd="
_CALL = re.compile(r"IOCTL fd=(-?\d{1,10}) cmd=0x([0-9a-f]{1,16}) (.*)")
_WORDS = re.compile(r"0x[0-9a-f]+:((?:\s+0x[0-9a-f]{16})+)\s*")
_SET, _SET2, _ATTRIBUTES, _CREATE = IOCTL_NUMBERS.values()


@dataclass(slots=True)
class _Process:
    table: SlotTable = field(default_factory=SlotTable)
    created: list[File] = field(default_factory=list)  # sizes and flags, in order of creation
    by_fd: dict[int, File] = field(default_factory=dict)
    private: dict[str, list[Range]] = field(default_factory=dict)
    refused: int = 0


def read(source: str, data: bytes) -> list[Layout]:
    """The slots that are left after the last call, one layout per VM descriptor."""
    process = _Process()
    for line, vm, command, words in _calls(source, data):
        if len(words) < 8:
            raise LayoutError(source, "needed eight 64-bit words after the call", line=line, field="words")
        if command in (_SET, _SET2):
            _set(process, vm, words, command == _SET2)
        elif command == _CREATE:
            process.created.append(File("", words[0], words[1]))
        elif command == _ATTRIBUTES:
            _attributes(process, vm, words)
        kept = len(process.table) + len(process.created) + len(process.by_fd) + len(process.private)
        within(source, kept, MAX_KEPT, "slots and files", line=line)
        within(source, len(process.private.get(vm, ())), MAX_KEPT, "private ranges", line=line)
    found = [_layout(source, process, vm) for vm in process.table.vms() if process.table.slots(vm)]
    if not found:
        raise LayoutError(source, "no slot is left after the last call", remedy="dump the whole start of the VMM")
    return found


def _calls(source: str, data: bytes) -> Iterator[tuple[int, str, int, list[int]]]:
    """(line, vm, command, words) of each dumped call; the words are on the call's line and on those after it."""
    pending: tuple[int, str, int, list[int]] | None = None
    for line, text in lines(source, data):
        if match := _CALL.fullmatch(text):
            if pending is not None:
                yield pending
            pending = (line, f"fd {match[1]}", int(match[2], 16), [])
            text = match[3]
        if pending is not None and len(pending[3]) < 8 and (words := _WORDS.fullmatch(text)):
            pending[3].extend(int(word, 16) for word in words[1].split())
    if pending is not None:
        yield pending


def _set(process: _Process, vm: str, words: list[int], second: bool) -> None:
    number, flags = words[0] & 0xFFFF_FFFF, words[0] >> 32
    bound = second and bool(flags & KVM_MEM_GUEST_MEMFD)
    file = _file(process, words[5] & 0xFFFF_FFFF) if bound else None
    slot = Slot(
        gpa=words[1],
        size=words[2],
        hva=words[3],
        flags=flags,
        region=file.name if file else "",
        offset=words[4] if bound else None,
        file=file.name if file else None,
        number=number & 0xFFFF,
        address_space=number >> 16,
    )
    past_end = file is not None and file.size and (slot.offset or 0) + slot.size > file.size
    if slot.size and (process.table.collides(vm, slot) or past_end or slot.end >= U64):
        process.refused += 1
        return
    process.table.set(vm, slot)


def _file(process: _Process, fd: int) -> File:
    """The guest_memfd of a descriptor: the oldest one created that no other descriptor has been seen for."""
    if fd not in process.by_fd:
        made = process.created.pop(0) if process.created else File("")
        process.by_fd[fd] = File(f"fd {fd}", made.size, made.flags)
    return process.by_fd[fd]


def _attributes(process: _Process, vm: str, words: list[int]) -> None:
    start, end = words[0], words[0] + words[1]
    if end >= U64:
        return
    private = bool(words[2] & KVM_MEMORY_ATTRIBUTE_PRIVATE)
    process.private[vm] = with_attribute(process.private.get(vm, ()), Range(start, end), private)


def _layout(source: str, process: _Process, vm: str) -> Layout:
    text = "the results of the calls are not in the dump: those that collide with earlier slots are taken as refused"
    notes = [Assumption("slots", f"{text} ({process.refused} of them)" if process.refused else text)]
    if process.by_fd:
        notes.append(Assumption("file", "guest_memfd descriptors taken as handed out in the order of creation"))
    if process.private.get(vm):
        notes.append(
            Assumption("attributes", "memory attributes are taken as they were set", "--attributes shared|private")
        )
    return Layout(
        source,
        "gdb-dump",
        tuple(process.table.slots(vm)),
        files=tuple(process.by_fd.values()),
        private=tuple(process.private.get(vm, ())),
        assumptions=tuple(notes),
    )
