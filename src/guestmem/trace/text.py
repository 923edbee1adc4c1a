"""Traces as text: tracefs ``trace``, ``trace-cmd report`` and ``perf script``; one event on a line.

The three differ in what is before the event's name. Tracepoints print their fields as words and numbers, most of them
hexadecimal without a mark; probes print ``name=value``. A line with an event that is not used, and one without an event
(heads, comments), is passed over; a line whose event lacks a field is a TraceError.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import IO, Final

from guestmem.trace.event import FIELDS, TraceError, TraceEvent, kind_of

__all__ = ("LONGEST_LINE", "read_text")

LONGEST_LINE: Final = 1 << 16
_TRACE = re.compile(
    rb"^\s*(?P<task>.{1,40})-(?P<pid>\d{1,10})\s+(?:\(\s*[-\d]+\)\s+)?\[(?P<cpu>\d{1,5})\]\s+(?:[^\s\[]{4,6}\s+)?"
    rb"(?P<time>\d{1,12}\.\d{1,9}):\s+(?P<name>[A-Za-z_][\w:]*):\s+(?P<rest>.*)$"
)
_PERF = re.compile(
    rb"^\s*(?P<task>.{1,40}?)\s+(?P<pid>\d{1,10})(?:/\d+)?\s+\[(?P<cpu>\d{1,5})\]\s+"
    rb"(?P<time>\d{1,12}\.\d{1,9}):\s+(?:\d+\s+)?(?P<name>[A-Za-z_][\w:]*):\s+(?P<rest>.*)$"
)
_LOST = re.compile(rb"\bLOST (\d+) (?:EVENTS|events)|\[(\d+) EVENTS DROPPED\]|lost (\d+) events")
_PROBE = re.compile(rb"\b([a-z]\w*)=(-?(?:0x[0-9a-fA-F]+|\d+))")
# What precedes each field of a tracepoint's text, and the base of its number.
_WORDS: Final[Mapping[str, Mapping[str, tuple[bytes, int]]]] = MappingProxyType(
    {
        "kvm_page_fault": {"fault_address": (rb"address ", 16), "error_code": (rb"error_code ", 16)},
        "kvm_mmu_set_spte": {"gfn": (rb"gfn ", 16), "spte": (rb" spte ", 16), "level": (rb"level ", 10)},
        "kvm_tdp_mmu_spte_changed": {
            "gfn": (rb"gfn ", 16),
            "level": (rb"level ", 10),
            "old_spte": (rb"old_spte ", 16),
            "new_spte": (rb"new_spte ", 16),
        },
        "kvm_mmu_split_huge_page": {
            "gfn": (rb"gfn ", 16),
            "spte": (rb" spte ", 16),
            "level": (rb"level ", 10),
            "errno": (rb"errno ", 10),
        },
        "kvm_unmap_hva_range": {"start": (rb"range: ", 16), "end": (rb" -- ", 16)},
    }
)
_FIELDS: Final = {
    kind: {
        name: (re.compile(before + rb"(-?(?:0x)?[0-9a-fA-F]{1,18})"), base) for name, (before, base) in words.items()
    }
    for kind, words in _WORDS.items()
}


def read_text(where: str, file: IO[bytes]) -> Iterator[TraceEvent | int]:
    """The events in the file's order; a number is how many the kernel lost there. TraceError says file and line."""
    head, number = _TRACE, 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise TraceError(f"{where}:{number}", f"a line is longer than {LONGEST_LINE >> 10}K: not a trace")
        found = head.match(line)
        if found is None:
            other = _PERF if head is _TRACE else _TRACE
            found = other.match(line)
            if found is None:
                if lost := _LOST.search(line):
                    yield int(next(group for group in lost.groups() if group))
                continue
            head = other
        kind = kind_of(found["name"].decode())
        if kind is not None:
            yield _event(f"{where}:{number}", kind, found)


def _event(where: str, kind: str, found: re.Match[bytes]) -> TraceEvent:
    seconds, _, part = found["time"].partition(b".")
    time = int(seconds) * 10**9 + int(part.ljust(9, b"0"))
    fields = _of_tracepoint(kind, found["rest"]) if kind in _FIELDS else _of_probe(found["rest"])
    missing = [name for name in FIELDS[kind] if name not in fields]
    if missing:
        raise TraceError(where, f"{kind} has no {missing[0]}: {found['rest'][:60].decode(errors='replace')!r}")
    task = found["task"].decode(errors="replace").strip()
    return TraceEvent(time, int(found["cpu"]), task, int(found["pid"]), kind, fields)


def _of_tracepoint(kind: str, text: bytes) -> dict[str, int]:
    found = {name: (pattern.search(text), base) for name, (pattern, base) in _FIELDS[kind].items()}
    return {name: int(match[1], base) for name, (match, base) in found.items() if match is not None}


def _of_probe(text: bytes) -> dict[str, int]:
    return {name.decode(): int(value, 0) for name, value in _PROBE.findall(text)}
