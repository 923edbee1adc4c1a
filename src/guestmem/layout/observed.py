"""What a kernel really mapped, against what the layout allows: the faults of a trace, slot by slot.

A fault tells the page size that one frame got. The layout says the largest that it allows there. Smaller is no
contradiction where transparent huge pages or an unknown HVA were only possible; larger always is one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from guestmem.layout.coverage import Coverage, SlotCoverage

__all__ = ("Differing", "Observed", "SlotObserved", "compare_observed")

_SHOWN = 5  # differing frames that are named


@dataclass(frozen=True, slots=True)
class Differing:
    """A frame that got another page size than the largest allowed; gpa and sizes in bytes."""

    gpa: int
    allowed: int
    got: int


@dataclass(slots=True)
class SlotObserved:
    """The faults on one slot, by index in the layout: how many by page size, and those that differ (the first few)."""

    index: int
    faults: Counter[int] = field(default_factory=Counter)
    smaller: int = 0
    larger: int = 0
    examples: list[Differing] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Observed:
    """The slots that were touched, and how many faults were on frames of no slot."""

    slots: tuple[SlotObserved, ...]
    elsewhere: int

    @property
    def larger(self) -> int:
        """Faults that got more than the layout allows: the layout is not what ran."""
        return sum(slot.larger for slot in self.slots)


def compare_observed(coverage: Coverage, faults: Iterable[tuple[int, int]]) -> Observed:
    """Hold faults, as GPA and page size in bytes, against a coverage. Slots of the first address space only."""
    order = sorted(
        (index for index, item in enumerate(coverage.slots) if not item.slot.address_space),
        key=lambda index: coverage.slots[index].slot.gpa,
    )
    starts = [coverage.slots[index].slot.gpa for index in order]
    found: dict[int, SlotObserved] = {}
    elsewhere = 0
    for gpa, got in faults:
        at = bisect_right(starts, gpa) - 1
        if at < 0 or gpa >= coverage.slots[order[at]].slot.end:
            elsewhere += 1
            continue
        slot = found.setdefault(order[at], SlotObserved(order[at]))
        slot.faults[got] += 1
        allowed = _allowed(coverage.slots[order[at]], gpa)
        slot.smaller += got < allowed
        slot.larger += got > allowed
        if got != allowed and len(slot.examples) < _SHOWN:
            slot.examples.append(Differing(gpa, allowed, got))
    return Observed(tuple(found[index] for index in sorted(found)), elsewhere)


def _allowed(item: SlotCoverage, gpa: int) -> int:
    """The largest page size allowed at a GPA of the slot, bytes; the base page where none is."""
    allowed = item.sizes[0]
    for size, segments in zip(item.sizes, item.segments, strict=True):
        at = bisect_right(segments, gpa, key=lambda segment: segment.start) - 1
        if segments[at].reason is None:
            allowed = size
    return allowed
