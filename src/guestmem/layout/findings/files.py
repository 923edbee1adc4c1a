"""Bindings to guest_memfds with hugepages (profile next): offsets that lose the level, rules that refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from guestmem.layout.binding import BindingLimit
from guestmem.layout.coverage import Coverage, cover
from guestmem.layout.findings.value import Finding, gained, lost_to
from guestmem.layout.reasons import Reason
from guestmem.layout.regions import name_of
from guestmem.layout.value import Slot
from guestmem.units import align_up, format_size

__all__ = ("find_file_findings",)


def find_file_findings(coverage: Coverage) -> Iterator[Finding]:
    """rule-refuses, offset-not-congruent and rule-lowers-level."""
    layout, files = coverage.layout, coverage.host.files
    if not files.page_size:
        return
    ends = _bound_ends(coverage)
    for index, slot in enumerate(layout.slots):
        file = layout.file_of(slot)
        if file is None or not slot.guest_memfd:
            continue
        limit = files.limit(slot, file, coverage.host.geometry)
        reasons = {lost.reason for lost in coverage.slots[index].lost}
        if Reason.REFUSED in reasons:
            continue
        if limit.refusal is not None:
            yield _refused(coverage, index, limit, ends[file.name])
        elif reasons & {Reason.OFFSET, Reason.BINDING}:
            yield _crooked(coverage, index, limit, ends[file.name])
        elif Reason.RULE in reasons:
            message = f"{name_of(slot)}: {limit.rule.name}: {limit.rule.statement}"
            remedy = "'guestmem plan' finds the offsets at which this rule loses least"
            lost = lost_to(coverage, (index,), Reason.RULE)
            yield Finding("rule-lowers-level", "warning", message, remedy, (index,), lost)


def _bound_ends(coverage: Coverage) -> dict[str, int]:
    """The end of the last binding of each file."""
    ends: dict[str, int] = {}
    for slot in coverage.layout.slots:
        if slot.file is not None:
            ends[slot.file] = max(ends.get(slot.file, 0), (slot.offset or 0) + slot.size)
    return ends


def _refused(coverage: Coverage, index: int, limit: BindingLimit, bound_end: int) -> Finding:
    slot = coverage.layout.slots[index]
    message = f"{name_of(slot)}: the rule {limit.rule.name} refuses the binding (EINVAL): {limit.refusal}"
    better = _better(coverage, limit, bound_end)
    lost = lost_to(coverage, (index,), Reason.RULE)
    if better is None:
        remedy = "no offset is accepted for this GPA and size: see 'guestmem rules'"
        return Finding("rule-refuses", "error", message, remedy, (index,), lost)
    return Finding(
        "rule-refuses", "error", message, _move(slot, better), (index,), lost, gained(coverage, {index: better})
    )


def _crooked(coverage: Coverage, index: int, limit: BindingLimit, bound_end: int) -> Finding:
    slot = coverage.layout.slots[index]
    size = format_size(limit.page_size)
    message = (
        f"{name_of(slot)}: GPA {slot.gpa:#x} and file offset {slot.offset or 0:#x} differ by "
        f"{(slot.gpa - (slot.offset or 0)) % limit.page_size:#x} modulo {size}: no {size} page can be mapped whole"
    )
    lost = lost_to(coverage, (index,), Reason.OFFSET, Reason.BINDING)
    better = _better(coverage, limit, bound_end)
    gain = gained(coverage, {index: better}) if better is not None else ()
    if better is None or not gain:
        remedy = f"none under the rule {limit.rule.name}: see 'guestmem rules'"
        return Finding("offset-not-congruent", "note", message, remedy, (index,), lost)
    return Finding("offset-not-congruent", "warning", message, _move(slot, better), (index,), lost, gain)


def _move(slot: Slot, better: Slot) -> str:
    return f"move offset {slot.offset or 0:#x} to {better.offset or 0:#x}: holes in the file cost nothing"


def _better(coverage: Coverage, limit: BindingLimit, bound_end: int) -> Slot | None:
    """The slot at an offset above its own that the rule accepts, is free, and maps most; the lowest of equals."""
    slot = limit.slot
    offset = slot.offset or 0
    others = [other for other in coverage.layout.slots if other.file == slot.file and other is not slot]
    candidates = set()
    for page in coverage.host.sizes:
        for start in (offset, bound_end):
            candidates |= {align_up(start, page), start + (slot.gpa - start) % page}
    free = [
        replace(slot, offset=at)
        for at in sorted(candidates)
        if all(at + slot.size <= (other.offset or 0) or (other.offset or 0) + other.size <= at for other in others)
    ]
    layout = replace(coverage.layout, files=tuple(replace(file, size=0) for file in coverage.layout.files))
    found = [(cover(layout.only((moved,)), coverage.host).mapped[::-1], moved) for moved in free]
    best = max(found, key=lambda item: item[0], default=None)
    return best[1] if best is not None and any(best[0]) else None
