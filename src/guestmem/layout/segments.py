"""A slot cut into runs of guest-physical bytes with one verdict each, for pages of one size.

A frame counts when it lies wholly in the slot and all its pages have the same attribute; frames that the slot fills
only in part, at its head and tail, and mixed ones are lost whatever backs them (hugepage_has_attrs, disallow_lpage of
kvm_alloc_memslot_metadata). What backs the other frames decides through two functions, one for shared, one for private
pages. Work is one step per run of attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from guestmem.layout.reasons import Reason
from guestmem.layout.value import Range, Slot
from guestmem.units import align_down, align_up

__all__ = ("Neighbours", "Part", "Segment", "Verdict", "all_of", "or_larger", "segments_of", "uniform_segments")

Part = tuple[int, int, Reason | None]  # guest-physical start, end, verdict
Verdict = Callable[[int, int], Iterator[Part]]  # cuts whole frames [start, end) into parts


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes [start, end) of guest-physical space with one verdict for a level: mappable (None) or the reason."""

    start: int
    end: int
    reason: Reason | None


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The end of the slot below and the start of the slot above, in the same address space."""

    below_end: int
    above_start: int


def all_of(reason: Reason | None) -> Verdict:
    """The same verdict for every frame."""
    return lambda start, end: iter(((start, end, reason),))


def segments_of(
    slot: Slot, page_size: int, around: Neighbours, attributes: Sequence[Range], shared: Verdict, private: Verdict
) -> tuple[Segment, ...]:
    """The slot's segments for pages of page_size bytes; ``attributes`` are the private ranges in it."""
    head, first, last, tail = _edges(slot, page_size, around)
    parts: list[Part] = [(slot.gpa, first, head)]
    for start, end, kind in _frames(first, last, page_size, attributes):
        if kind == "mixed":
            parts.append((start, end, Reason.MIXED))
        else:
            parts.extend((shared if kind == "shared" else private)(start, end))
    parts.append((last, slot.end, tail))
    return tuple(_joined(parts))


def uniform_segments(slot: Slot, page_size: int, around: Neighbours, verdict: Reason | None) -> tuple[Segment, ...]:
    """The segments of a slot whose whole frames all have one verdict: most slots of most VMs, so worth being quick."""
    head, first, last, tail = _edges(slot, page_size, around)
    if first == last and head == tail:
        return (Segment(slot.gpa, slot.end, head),)
    middle = (Segment(first, last, verdict),) if first < last else ()
    before = (Segment(slot.gpa, first, head),) if slot.gpa < first else ()
    return (*before, *middle, Segment(last, slot.end, tail)) if last < slot.end else (*before, *middle)


def _edges(slot: Slot, page_size: int, around: Neighbours) -> tuple[Reason, int, int, Reason]:
    """Reason of the head, start and end of the whole frames, reason of the tail; an empty part's reason is moot."""
    first, last = align_up(slot.gpa, page_size), align_down(slot.end, page_size)
    if first > last:  # the slot lies inside one frame
        reason = _partial(slot.gpa, page_size, around, Reason.HEAD)
        return reason, slot.end, slot.end, reason
    head = _partial(slot.gpa, page_size, around, Reason.HEAD)
    return head, first, last, _partial(last, page_size, around, Reason.TAIL)


def or_larger(segments: tuple[Segment, ...], larger: tuple[Segment, ...]) -> tuple[Segment, ...]:
    """The segments of one size, where bytes that can be mapped with a larger size count as mappable too."""
    parts: list[Part] = []
    for segment in segments:
        if segment.reason is None:
            parts.append((segment.start, segment.end, None))
            continue
        for above in larger:
            start, end = max(segment.start, above.start), min(segment.end, above.end)
            if start < end:
                parts.append((start, end, None if above.reason is None else segment.reason))
    return tuple(_joined(parts))


def _joined(parts: list[Part]) -> Iterator[Segment]:
    """Parts without the empty ones, neighbours of one verdict made one."""
    pending: Part | None = None
    for part in parts:
        if part[0] >= part[1]:
            continue
        if pending is not None and pending[2] == part[2]:
            pending = (pending[0], part[1], part[2])
            continue
        if pending is not None:
            yield Segment(*pending)
        pending = part
    if pending is not None:
        yield Segment(*pending)


def _partial(inside: int, page_size: int, around: Neighbours, alone: Reason) -> Reason:
    """The reason for a frame that the slot fills only in part: is another slot in it?"""
    frame = align_down(inside, page_size)
    if around.below_end > frame or around.above_start < frame + page_size:
        return Reason.SHARED_FRAME
    return alone


def _frames(
    first: int, last: int, page_size: int, attributes: Sequence[Range]
) -> Iterator[tuple[int, int, Literal["shared", "private", "mixed"]]]:
    """Whole frames [first, last) as runs of one kind."""
    at = first  # frame-aligned; everything below has been yielded
    for run in attributes:
        start, end = max(run.start, at), min(run.end, last)
        if start >= end:
            continue
        if align_down(start, page_size) > at:
            yield at, align_down(start, page_size), "shared"
            at = align_down(start, page_size)
        if start > at:
            yield at, at + page_size, "mixed"
            at += page_size
        if end - at >= page_size:
            yield at, align_down(end, page_size), "private"
            at = align_down(end, page_size)
        if end > at:
            yield at, at + page_size, "mixed"
            at += page_size
    if at < last:
        yield at, last, "shared"
