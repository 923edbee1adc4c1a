"""QEMU monitor text: ``info mtree -f``, with ``info ramblock``, ``gpa2hva`` and ``info memdev`` when present.

Rows of the flat view whose address spaces include "memory" that are RAM-backed and carry the accelerator's name are
memslots of exactly that range. The views come in a hash order that changes between runs, names repeat, lines end in
CR LF, and the interactive monitor echoes with escape codes; all of that is expected. HVAs come from ``info ramblock``
(10.0 and later) or from ``gpa2hva``; where neither tells, the placement QEMU is known to choose is assumed.
Left out: slot numbers, attributes, history, and the tree form, whose overlaps are unresolved.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, field, replace

import msgspec

from guestmem.layout.budget import MAX_DOCUMENT, MAX_KEPT, MAX_NAME, within
from guestmem.layout.error import LayoutError
from guestmem.layout.placement import ALIGNED_BASE, PAGE_BELOW_BASE, THP_ASSUMPTION, hva_assumption
from guestmem.layout.text import MAX_LINE, lines
from guestmem.layout.value import Assumption, Backing, Layout, Slot
from guestmem.layout.vmm import DISPLAY
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import GIB, KIB, MIB, U64, align_down, align_up, format_size

__all__ = ("read",)

_ROW = re.compile(r" +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, (?:nv-)?([a-z/]+)\): (.*)")
_REGION = re.compile(
    r"(.*?)(?: @([0-9a-f]{1,16}))?((?: owner:\{[^{}]*\}| parent:\{[^{}]*\}| orphan){0,8})((?: KVM){0,8})"
)
_BLOCK = re.compile(
    r"\s*(\S+)\s+(\d+) ([KMG])iB\s+0x[0-9a-f]+\s+0x([0-9a-f]+)\s+0x[0-9a-f]+(?:\s+0x([0-9a-f]+)\s+(?:ro|rw))?\s*"
)
_GPA2HVA = re.compile(r"Host virtual address for 0x([0-9a-f]+) \((.*)\) is 0x([0-9a-f]+)")
_VERSION = re.compile(r"(\d+\.\d+\.\d+)(?:\D.*)?")
_RAM_TYPES = ("ram", "rom", "romd", "ramd")
_MAX_ROW = 4 * MAX_NAME  # a name, an owner and a parent
_UNITS = {"K": KIB, "M": MIB, "G": GIB}


@dataclass(frozen=True, slots=True)
class _Row:
    start: int
    end: int
    type: str
    region: str
    offset: int
    kvm: bool


@dataclass(slots=True)
class _Monitor:
    """What the answers in one capture say; a later answer to the same question replaces an earlier one."""

    version: str = ""
    memory: list[_Row] | None = None
    page_sizes: dict[str, int] = field(default_factory=dict)  # by RAMBlock
    bases: dict[str, int] = field(default_factory=dict)  # by RAMBlock
    hvas: list[tuple[int, int]] = field(default_factory=list)  # gpa, hva
    shared: dict[str, bool] = field(default_factory=dict)  # by memory backend


class _Text(msgspec.Struct):
    text: str = msgspec.field(name="human-readable-text")


class _Answer(msgspec.Struct):
    answer: msgspec.Raw = msgspec.field(name="return")


class _Known:
    """What the rows and answers tell together, each looked up without a search: a view may have thousands of rows."""

    def __init__(self, rows: list[_Row], monitor: _Monitor) -> None:
        self.ram = {row.region for row in rows if row.type == "ram"}
        self._page_sizes, self._bases = monitor.page_sizes, monitor.bases
        self._owned: dict[str, list[str]] = {}
        for name in monitor.page_sizes:
            self._owned.setdefault(name.rpartition("/")[2], []).append(name)
        self._by_row: dict[_Row, int] = {}
        self._by_region: dict[str, int] = {}
        hvas = sorted(monitor.hvas)
        for row in rows:
            at = bisect_left(hvas, (row.start, 0))
            if at < len(hvas) and hvas[at][0] < row.end:
                gpa, hva = hvas[at]
                self._by_row[row] = (hva - (gpa - row.start) - row.offset) % U64
                self._by_region.setdefault(row.region, self._by_row[row])

    def block(self, region: str) -> str:
        """The RAMBlock of a memory region: its name, or DEVICEPATH/name when just one device has such a block."""
        owned = self._owned.get(region, [])
        return owned[0] if region not in self._page_sizes and len(owned) == 1 else region

    def base(self, row: _Row) -> int | None:
        """HVA of offset 0 of the region, from ``info ramblock`` or from a ``gpa2hva`` into any row of the region."""
        block = self.block(row.region)
        if block in self._bases:
            return self._bases[block]
        return self._by_row.get(row, self._by_region.get(row.region))


def read(source: str, data: bytes) -> list[Layout]:
    """The memslots of the "memory" address space."""
    monitor = _parse(source, _monitor_text(source, data))
    if monitor.memory is None:
        raise LayoutError(source, 'needed a FlatView with AS "memory"', remedy="capture the whole of 'info mtree -f'")
    known = _Known(monitor.memory, monitor)
    rows = [row for row in monitor.memory if row.type in _RAM_TYPES]
    under_kvm = [row for row in rows if row.kvm]
    slots = [slot for row in under_kvm or rows if (slot := _slot(row, monitor, known)) is not None]
    if not slots:
        raise LayoutError(source, 'the "memory" view holds no RAM', remedy="capture it from a VM that has some")
    return [_layout(source, monitor, slots, bool(under_kvm))]


def _monitor_text(source: str, data: bytes) -> bytes:
    """Monitor text out of QMP answers ({"return": "FlatView..."}), or the text as it is."""
    if data[:MAX_LINE].lstrip()[:1] != b"{":
        return data
    if len(data) > MAX_DOCUMENT:
        raise LayoutError(source, f"at most {format_size(MAX_DOCUMENT)} of QMP answers are read", remedy="split it")
    texts = []
    for line in data.splitlines():
        try:
            answer = bytes(msgspec.json.decode(line, type=_Answer).answer)
            plain = answer[:1] == b'"'
            text = msgspec.json.decode(answer) if plain else msgspec.json.decode(answer, type=_Text).text
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            continue
        texts.append(text)
    return "\n".join(texts).encode("utf-8", "replace")


def _parse(source: str, data: bytes) -> _Monitor:
    monitor = _Monitor()
    spaces: list[str] = []
    rows: list[_Row] = []
    backend, dispatch = "", False
    for line, text in lines(source, data):
        if "\x1b" in text or text.startswith("(qemu)"):
            spaces, dispatch = [], False
        elif text.startswith("FlatView #"):
            spaces, rows, dispatch = [], [], False
        elif text.startswith(' AS "'):
            spaces.append(text[5:].partition('"')[0])
            if spaces[-1] == "memory":
                monitor.memory = rows
        elif text.strip() == "Dispatch":
            dispatch = True
        elif spaces and not dispatch and (match := _ROW.fullmatch(text)):
            within(source, len(match[4]), _MAX_ROW, "characters of a row", line=line)
            rows.append(_row(source, line, match))
        elif match := _BLOCK.fullmatch(text):
            within(source, len(match[1]), MAX_NAME, "characters of a name", line=line)
            _block(monitor, match)
        elif match := _GPA2HVA.match(text):
            monitor.hvas.append((int(match[1][-16:], 16), int(match[3][-16:], 16)))
        elif text.startswith("memory backend: "):
            backend = text[16:].strip()
            within(source, len(backend), MAX_NAME, "characters of a name", line=line)
        elif backend and text.strip().startswith("share: "):
            monitor.shared[backend] = text.strip() == "share: true"
        elif not monitor.version and (match := _VERSION.fullmatch(text)):
            monitor.version = match[1]
        kept = len(spaces) + len(rows) + len(monitor.page_sizes) + len(monitor.hvas) + len(monitor.shared)
        within(source, kept, MAX_KEPT, "rows and blocks", line=line)
    return monitor


def _row(source: str, line: int, match: re.Match[str]) -> _Row:
    start, last = int(match[1], 16), int(match[2], 16)
    if last < start:
        raise LayoutError(source, f"ends before it starts at {start:#x}", line=line, field="range end", value=match[2])
    rest = _REGION.fullmatch(match[4].rstrip())
    if rest is None:
        return _Row(start, last + 1, match[3], match[4], 0, False)
    return _Row(start, last + 1, match[3], rest[1], int(rest[2] or "0", 16), bool(rest[4]))


def _block(monitor: _Monitor, match: re.Match[str]) -> None:
    name, count, unit, _, hva = match.groups()
    monitor.page_sizes[name] = int(count[:4]) * _UNITS[unit]
    if hva is not None:
        monitor.bases[name] = int(hva[-16:], 16)


def _slot(row: _Row, monitor: _Monitor, known: _Known) -> Slot | None:
    """The row rounded inwards to host pages, as QEMU does before the ioctl; None if nothing is left."""
    start, end = align_up(row.start, 4 * KIB), align_down(row.end, 4 * KIB)
    if start >= end:
        return None
    offset = row.offset + start - row.start
    page_size = monitor.page_sizes.get(known.block(row.region), 4 * KIB)
    base = known.base(row)
    return Slot(
        gpa=start,
        size=end - start,
        hva=None if base is None else (base + offset) % U64,
        flags=_flags(row, known),
        region=row.region,
        offset=offset,
        backing=_backing(page_size, monitor.shared.get(row.region)),
    )


def _flags(row: _Row, known: _Known) -> int:
    # "rom" describes the range: PAM windows on plain RAM say rom too, but their slots have flags 0.
    if row.type == "romd" or (row.type == "rom" and row.region not in known.ram):
        return KVM_MEM_READONLY
    return KVM_MEM_LOG_DIRTY_PAGES if row.region == DISPLAY else 0


def _backing(page_size: int, shared: bool | None) -> Backing:
    if page_size > 4 * KIB:
        return Backing("hugetlb", page_size)
    return Backing("anonymous" if shared is False else "unknown", page_size)


def _layout(source: str, monitor: _Monitor, slots: list[Slot], under_kvm: bool) -> Layout:
    placed, assumptions = _place(slots, monitor)
    if not under_kvm:
        text = "no row has the accelerator's name (captured without KVM): every RAM row is taken as a memslot"
        assumptions.append(Assumption("slots", text, "capture with accel=kvm"))
    if any(slot.region == DISPLAY for slot in slots):
        text = f"dirty logging is not in the source: {DISPLAY} is taken as dirty-logged, as QEMU does for displays"
        assumptions.append(Assumption("dirty_log", text))
    assumptions.append(THP_ASSUMPTION)
    machine = f"QEMU {monitor.version}" if monitor.version else "QEMU"
    return Layout(source, "qemu-mtree", tuple(placed), assumptions=tuple(assumptions), vmm="qemu", machine=machine)


def _place(slots: list[Slot], monitor: _Monitor) -> tuple[list[Slot], list[Assumption]]:
    """Fill in assumed HVAs where none is known, and say so."""
    aligned: dict[str, None] = {}
    below: dict[str, None] = {}
    placed = []
    for slot in slots:
        if slot.hva is None:
            file_like = bool(monitor.shared.get(slot.region)) and slot.backing.kind != "hugetlb"
            (below if file_like else aligned).setdefault(slot.region)
            base = PAGE_BELOW_BASE if file_like else ALIGNED_BASE
            slot = replace(slot, assumed_hva=base + (slot.offset or 0))
        placed.append(slot)
    ask = "'gpa2hva ADDRESS' or, from 10.0 on, 'info ramblock' has it"
    found = []
    if aligned:
        found.append(hva_assumption(list(aligned), "aligned to 2M or to the hugetlb page, as QEMU maps RAM", ask))
    if below:
        how = "one page below a 2M boundary, where QEMU's shared memfd and file backends usually land"
        found.append(hva_assumption(list(below), how, ask))
    return placed, found
