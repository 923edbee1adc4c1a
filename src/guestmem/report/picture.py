"""Guest-physical space as a strip of cells, drawn to scale: what can be mapped how large, and where nothing is.

A cell stands for an equal share of the range. It shows the level that most of its bytes can be mapped with, by index
into the host's sizes; None where no slot is. Pure: colours and characters are the writer's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from guestmem.layout.coverage import Coverage, SlotCoverage

__all__ = ("Run", "best_runs", "cells", "windows")


@dataclass(frozen=True, slots=True)
class Run:
    """Guest-physical bytes [start, end) of slot ``slot`` with one best level; -1: cannot be mapped at all."""

    start: int
    end: int
    level: int
    slot: int


def best_runs(coverage: Coverage) -> Iterator[Run]:
    """Every slot cut where its best level changes, ascending within the slot."""
    for index, item in enumerate(coverage.slots):
        yield from _runs(index, item)


def _runs(index: int, item: SlotCoverage) -> Iterator[Run]:
    edges = sorted({edge for segments in item.segments for part in segments for edge in (part.start, part.end)})
    places = [0] * len(item.segments)
    for start, end in pairwise(edges):
        level = -1
        for at, segments in enumerate(item.segments):
            while segments[places[at]].end <= start:
                places[at] += 1
            if segments[places[at]].reason is None:
                level = at
        yield Run(start, end, level, index)


def cells(coverage: Coverage, start: int, end: int, width: int) -> list[int | None]:
    """The strip for [start, end) in ``width`` cells."""
    sums: list[dict[int, int]] = [{} for _ in range(width)]
    for run in best_runs(coverage):
        low, high = max(run.start, start), min(run.end, end)
        if low >= high:
            continue
        first, last = (low - start) * width // (end - start), (high - 1 - start) * width // (end - start)
        for cell in range(first, last + 1):
            left = start + cell * (end - start) // width
            right = start + (cell + 1) * (end - start) // width
            covered = max(0, min(high, right) - max(low, left))
            sums[cell][run.level] = sums[cell].get(run.level, 0) + covered
    return [max(levels, key=lambda level: levels[level]) if levels else None for levels in sums]


def windows(coverage: Coverage) -> list[tuple[int, int]]:
    """The ranges worth a strip: all of it, and the first frames if they hold more than one slot."""
    slots = [item.slot for item in coverage.slots if item.slot.address_space == 0]
    if not slots:
        return []
    found = [(0, max(slot.end for slot in slots))]
    first = coverage.host.sizes[1] if len(coverage.host.sizes) > 1 else coverage.host.sizes[0]
    if sum(slot.gpa < first for slot in slots) > 1 and found[0][1] > 8 * first:
        found.append((0, 2 * first))
    return found
