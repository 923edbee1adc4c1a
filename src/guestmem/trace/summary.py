"""What a report says of a trace: per VM its slots, its faults by level and cause, zaps, splits, and levels over time.

VMs are told apart by the ``kvm`` pointer that function probes print. Tracepoints have none: a trace of tracepoints
alone is about all VMs together, and says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from guestmem.harness import PAGE_SIZE
from guestmem.host.leaves import FRAME
from guestmem.host.verdict import LossCause
from guestmem.trace.event import TraceEvent
from guestmem.trace.tables import Tables
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import GIB, format_size

__all__ = ("FIXED", "LEVEL_SIZES", "TraceMark", "TraceSlot", "TraceSummary", "TracedVm", "summarise")

LEVEL_SIZES: Final = {1: PAGE_SIZE, 2: FRAME, 3: GIB}
FIXED: Final = 5
"""RET_PF_FIXED, seen on 6.12 and 7.2; a fault with another result maps nothing new."""
_POINTS = 1024  # of the time line; with more, every other one goes
_HOTTEST = 10
_MARKS = 400


@dataclass(slots=True)
class TraceSlot:
    """A memslot as last set, gpa, size and hva in bytes; faults by level and, of 4K, by cause."""

    id: int
    gpa: int
    size: int
    hva: int
    flags: int
    deleted: bool = False
    faults: Counter[int] = field(default_factory=Counter)
    causes: Counter[LossCause] = field(default_factory=Counter)
    zapped: int = 0  # bytes that were unmapped by frames
    logs: int = 0  # how often dirty logging was switched on

    @property
    def log_dirty(self) -> bool:
        """Dirty logging is on."""
        return bool(self.flags & KVM_MEM_LOG_DIRTY_PAGES)


@dataclass(slots=True)
class TracedVm:
    """One VM; kvm is the kernel's pointer."""

    kvm: int
    slots: dict[int, TraceSlot] = field(default_factory=dict)
    failed: int = 0  # faults that ended without a mapping
    destroyed: bool = False


@dataclass(slots=True)
class TraceMark:
    """Something that happened to a VM at a time, in nanoseconds since boot; count times in a row."""

    time: int
    text: str
    count: int = 1


@dataclass(slots=True)
class TraceSummary:
    """A whole trace; times in nanoseconds since boot, hottest by first byte of a 2M frame.

    lost is how many events the kernel said it dropped, and lost_at where; a 0 there is an unknown number. spans has the
    leaves by level over time, for all VMs together, if the trace has every change of the tables. marks are the changes
    of slots, switches of dirty logging and splits, as far as they are few enough to be looked at.
    """

    events: Counter[str] = field(default_factory=Counter)
    first: int | None = None
    last: int | None = None
    lost: int = 0
    lost_at: list[int | None] = field(default_factory=list)
    vms: dict[int, TracedVm] = field(default_factory=dict)
    tables: Tables = field(default_factory=Tables)
    spans: list[tuple[int, dict[int, int]]] = field(default_factory=list)
    most: dict[int, int] = field(default_factory=dict)
    levels: Counter[int] = field(default_factory=Counter)  # entries set by faults, by level, where no probe tells more
    zappers: Counter[str] = field(default_factory=Counter)  # host ranges unmapped, by the task that did it
    frames: Counter[int] = field(default_factory=Counter)  # faults by 2M frame
    marks: list[TraceMark] = field(default_factory=list)
    asked: dict[int, tuple[TracedVm, int, TraceSlot | None]] = field(default_factory=dict)  # by thread: what was before

    @property
    def exact(self) -> bool:
        """Whether the counts of leaves are KVM's own: every change is there, and nothing was lost or came before."""
        return self.tables.exact and not self.lost_at and not self.tables.unknown

    def mark(self, time: int, text: str) -> None:
        """Note it, or that the last one happened again."""
        if self.marks and self.marks[-1].text == text:
            self.marks[-1].count += 1
        elif len(self.marks) < _MARKS:
            self.marks.append(TraceMark(time, text))

    def hottest(self) -> list[tuple[int, int]]:
        """The 2M frames with most faults: their first byte, and how many."""
        ordered = sorted(self.frames.items(), key=lambda found: (-found[1], found[0]))
        return [(frame * FRAME, count) for frame, count in ordered[:_HOTTEST] if count > 1]


def summarise(events: Iterable[TraceEvent | int]) -> TraceSummary:
    """Add up the events of a trace, once, in bounded memory but for the tables of the VMs that live."""
    found = TraceSummary()
    for event in events:
        if isinstance(event, int):
            found.lost += event
            found.lost_at.append(found.last)
            continue
        found.events[event.kind] += 1
        found.first = event.time if found.first is None else found.first
        found.last = event.time
        _HANDLERS.get(event.kind, _nothing)(found, event)
    return found


def _nothing(found: TraceSummary, event: TraceEvent) -> None:
    """Counted, and no more."""


def _slot_set(found: TraceSummary, event: TraceEvent) -> None:
    at = event.fields
    vm = _vm(found, event)
    number = at["slot"]
    old = vm.slots.get(number)
    found.asked[event.pid] = (vm, number, None if old is None else replace(old))
    switched = (old.log_dirty if old is not None else False) != bool(at["flags"] & KVM_MEM_LOG_DIRTY_PAGES)
    if not at["size"]:
        found.mark(event.time, f"slot {number} deleted")
        if old is not None:
            old.deleted = True
    elif old is None or old.deleted:
        vm.slots[number] = TraceSlot(number, at["gpa"], at["size"], at["hva"], at["flags"])
        vm.slots[number].logs = int(vm.slots[number].log_dirty)
        found.mark(event.time, f"slot {number} set")
    else:
        if switched:
            found.mark(event.time, f"dirty logging of slot {number} {'off' if old.log_dirty else 'on'}")
        old.logs += int(bool(at["flags"] & KVM_MEM_LOG_DIRTY_PAGES) and not old.log_dirty)
        old.gpa, old.size, old.hva, old.flags = at["gpa"], at["size"], at["hva"], at["flags"]


def _slot_answered(found: TraceSummary, event: TraceEvent) -> None:
    """A change that KVM refused was none."""
    asked = found.asked.pop(event.pid, None)
    if asked is not None and event.fields["ret"]:
        vm, number, before = asked
        vm.slots.pop(number, None)
        if before is not None:
            vm.slots[number] = before


def _mapped(found: TraceSummary, event: TraceEvent) -> None:
    at, vm = event.fields, _vm(found, event)
    found.frames[at["gfn"] * PAGE_SIZE // FRAME] += 1
    if at["ret"] != FIXED:
        vm.failed += 1
        return
    slot = vm.slots.setdefault(at["slot"], TraceSlot(at["slot"], 0, 0, 0, 0))
    slot.faults[at["goal"]] += 1
    if at["goal"] == 1:
        slot.causes[_cause(slot, at)] += 1


def _cause(slot: TraceSlot, at: Mapping[str, int]) -> LossCause:
    """Why a fault was answered by 4K: by its levels, the slot's flags and where it lies."""
    if at["nx"] and at["req"] > 1:
        return LossCause.NX
    if at["max"] == 1:
        return LossCause.ORDER_0
    if not slot.size:
        return LossCause.UNKNOWN
    frame = at["gfn"] * PAGE_SIZE // FRAME * FRAME
    if frame < slot.gpa:
        return LossCause.HEAD
    if frame + FRAME > slot.gpa + slot.size:
        return LossCause.TAIL
    if (slot.gpa - slot.hva) % FRAME:
        return LossCause.HVA
    return LossCause.DIRTY_LOG if slot.log_dirty else LossCause.BACKING


def _unmapped(found: TraceSummary, event: TraceEvent) -> None:
    at = event.fields
    slot = _vm(found, event).slots.get(at["slot"])
    if slot is not None:
        slot.zapped += (at["end"] - at["start"]) * PAGE_SIZE


def _hva_unmapped(found: TraceSummary, event: TraceEvent) -> None:
    found.zappers[f"{event.task}-{event.pid}"] += 1


def _entry_set(found: TraceSummary, event: TraceEvent) -> None:
    found.levels[event.fields["level"]] += 1
    if "mapped" not in found.events:
        found.frames[event.fields["gfn"] * PAGE_SIZE // FRAME] += 1


def _changed(found: TraceSummary, event: TraceEvent) -> None:
    found.tables.see(event)
    if event.kind == "kvm_mmu_split_huge_page" and not event.fields["errno"]:
        found.mark(event.time, f"a leaf of {format_size(LEVEL_SIZES.get(event.fields['level'], 0))} split")
    counts = found.tables.count()
    if found.spans and found.spans[-1][0] == event.time:
        found.spans.pop()
    found.spans.append((event.time, counts))
    if len(found.spans) > 2 * _POINTS:
        found.spans = found.spans[:-1:2] + found.spans[-1:]
    for level, count in counts.items():
        found.most[level] = max(found.most.get(level, 0), count)


def _destroyed(found: TraceSummary, event: TraceEvent) -> None:
    found.mark(event.time, "VM destroyed")
    _vm(found, event).destroyed = True


def _vm(found: TraceSummary, event: TraceEvent) -> TracedVm:
    return found.vms.setdefault(event.fields["kvm"], TracedVm(event.fields["kvm"]))


_HANDLERS = {
    "slot": _slot_set,
    "slotret": _slot_answered,
    "mapped": _mapped,
    "unmap": _unmapped,
    "kvm_unmap_hva_range": _hva_unmapped,
    "kvm_mmu_set_spte": _entry_set,
    "kvm_tdp_mmu_spte_changed": _changed,
    "kvm_mmu_split_huge_page": _changed,
    "destroy": _destroyed,
}
