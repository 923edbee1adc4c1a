"""Bindings to guest_memfds with hugepages (profile next): offsets that lose the level, rules that refuse."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import replace

from guestmem.layout.binding import BindingLimit
from guestmem.layout.coverage import Coverage, cover
from guestmem.layout.findings.value import Bytes, Finding, gained_by, lost_to
from guestmem.layout.reasons import Reason
from guestmem.layout.refusal import is_by_rule
from guestmem.layout.value import Layout, Slot
from guestmem.units import align_up, format_size

__all__ = ("find_file_findings",)


def find_file_findings(coverage: Coverage) -> Iterator[Finding]:
    """rule-refuses, offset-not-congruent and rule-lowers-level."""
    layout, files = coverage.layout, coverage.host.files
    if not files.page_size:
        return
    room = _Room(layout)
    for index, slot in enumerate(layout.slots):
        file = layout.file_of(slot)
        if file is None or not slot.guest_memfd:
            continue
        refused = coverage.refused.get(index)
        if refused is not None and not is_by_rule(refused):
            continue  # no rule is asked about it
        limit = files.limit(slot, file, coverage.host.geometry)
        reasons = {lost.reason for lost in coverage.slots[index].lost}
        if refused is not None:
            yield _refused(coverage, index, limit, room)
        elif reasons & {Reason.OFFSET, Reason.BINDING}:
            yield _misaligned(coverage, index, limit, room)
        elif Reason.RULE in reasons:
            message = f"{slot.name}: the rule {limit.rule.name} allows smaller pages only: {limit.rule.statement}"
            remedy = "let 'guestmem plan' look for offsets at which this rule loses less"
            lost = lost_to(coverage, (index,), Reason.RULE)
            yield Finding("rule-lowers-level", "warning", message, remedy, (index,), lost)


class _Room:
    """What is bound in each file, and what remedies have given away: no two of them name the same bytes."""

    def __init__(self, layout: Layout) -> None:
        self._starts: dict[str | None, list[int]] = {}
        self._ends: dict[str | None, list[int]] = {}
        for slot in layout.slots:
            self._starts.setdefault(slot.file, []).append(slot.offset or 0)
            self._ends.setdefault(slot.file, []).append((slot.offset or 0) + slot.size)
        for values in (*self._starts.values(), *self._ends.values()):
            values.sort()

    def end(self, slot: Slot) -> int:
        """The end of the last binding of the slot's file."""
        return self._ends[slot.file][-1]

    def is_free(self, slot: Slot, at: int) -> bool:
        """Whether nothing but the slot itself lies where it would lie at another offset."""
        own = (slot.offset or 0) < at + slot.size and at < (slot.offset or 0) + slot.size
        before = bisect_left(self._starts[slot.file], at + slot.size)
        return before - bisect_right(self._ends[slot.file], at) == int(own)

    def take(self, slot: Slot) -> None:
        """Give the slot's range away; where the slot was before stays taken until it has moved."""
        insort(self._starts[slot.file], slot.offset or 0)
        insort(self._ends[slot.file], (slot.offset or 0) + slot.size)


def _refused(coverage: Coverage, index: int, limit: BindingLimit, room: _Room) -> Finding:
    slot = coverage.layout.slots[index]
    message = f"{slot.name}: the rule {limit.rule.name} refuses the binding (EINVAL): {limit.refusal}"
    better, gain = _better(coverage, index, room)
    lost = lost_to(coverage, (index,), Reason.RULE)
    remedy = "nothing to change: the rule accepts no offset for this GPA and size; see 'guestmem rules'"
    if better is not None:
        remedy = _move(coverage.layout, slot, better)
    return Finding("rule-refuses", "error", message, remedy, (index,), lost, gain)


def _misaligned(coverage: Coverage, index: int, limit: BindingLimit, room: _Room) -> Finding:
    slot = coverage.layout.slots[index]
    size = format_size(limit.page_size)
    message = (
        f"{slot.name}: GPA {slot.gpa:#x} and file offset {slot.offset or 0:#x} differ by "
        f"{(slot.gpa - (slot.offset or 0)) % limit.page_size:#x} modulo {size}: no {size} page can be mapped whole"
    )
    lost = lost_to(coverage, (index,), Reason.OFFSET, Reason.BINDING)
    better, gain = _better(coverage, index, room)
    if better is None or not gain:
        remedy = f"nothing to change: no offset gains under the rule {limit.rule.name}; see 'guestmem rules'"
        return Finding("offset-not-congruent", "note", message, remedy, (index,), lost)
    remedy = _move(coverage.layout, slot, better)
    return Finding("offset-not-congruent", "warning", message, remedy, (index,), lost, gain)


def _move(layout: Layout, slot: Slot, better: Slot) -> str:
    file, end = layout.file_of(slot), (better.offset or 0) + better.size
    remedy = f"move offset {slot.offset or 0:#x} to {better.offset or 0:#x}"
    if file is not None and 0 < file.size < end:
        remedy += f" and make the file {end:#x} bytes at least, not {file.size:#x}"
    return f"{remedy}: holes in the file cost nothing"


def _better(coverage: Coverage, index: int, room: _Room) -> tuple[Slot | None, Bytes]:
    """The slot at an offset that the rule accepts, is free, and maps most (the lowest of equals), and what it gains.

    The offset lies above the slot's own or above all bindings, and may be past the end of the file.
    """
    slot = coverage.layout.slots[index]
    candidates = {
        at
        for page in coverage.host.sizes
        for start in (slot.offset or 0, room.end(slot))
        for at in (align_up(start, page), start + (slot.gpa - start) % page)
    }
    moved = [replace(slot, offset=at) for at in sorted(candidates) if room.is_free(slot, at)]
    found = [(cover(_alone(coverage.layout, one), coverage.host).mapped, one) for one in moved]
    mapped, best = max(found, key=lambda item: item[0][::-1], default=((), None))
    if best is None or not any(mapped):
        return None, ()
    room.take(best)
    return best, gained_by(coverage, (index,), {index: mapped})


def _alone(layout: Layout, slot: Slot) -> Layout:
    """The slot in a file that is as long as it has to be."""
    alone = layout.only((slot,))
    return replace(alone, files=tuple(replace(file, size=0) for file in alone.files))
