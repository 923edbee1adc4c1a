"""Moving the data of bindings to other offsets of the same file, never overwriting what is still needed.

A move may write only where no other data waits to be moved, so it waits for every move whose source it would
overwrite. Where moves wait for one another in a circle, the smallest of them go through scratch space, which is not
proved to be the least (moves are whole: none is cut in parts). A move that overlaps itself is one memmove.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate
from typing import Literal

__all__ = ("Move", "MoveOrder", "MoveStep", "in_order")


@dataclass(frozen=True, slots=True)
class Move:
    """``size`` bytes from offset ``source`` to offset ``target``; ``slot`` says whose they are."""

    slot: int
    source: int
    target: int
    size: int

    def overwrites(self, other: Move) -> bool:
        """Whether this move writes over the source of the other."""
        return self.target < other.source + other.size and other.source < self.target + self.size


@dataclass(frozen=True, slots=True)
class MoveStep:
    """copy: within the file; save: from the file to scratch; restore: from scratch to the file. Offsets are bytes."""

    kind: Literal["copy", "save", "restore"]
    move: Move


@dataclass(frozen=True, slots=True)
class MoveOrder:
    """Steps in order; scratch is the most bytes of scratch space in use."""

    steps: tuple[MoveStep, ...]
    scratch: int


def in_order(moves: Sequence[Move]) -> MoveOrder:
    """Order the moves. Moves whose source is their target need nothing."""
    here = sorted((move for move in moves if move.source != move.target), key=lambda move: (move.size, move.source))
    waiters: list[list[int]] = [[] for _ in here]  # by the move whose source they would overwrite
    waits = [0] * len(here)
    for first, second in _conflicts(here):
        waiters[second].append(first)
        waits[first] += 1
    ready = [index for index, count in enumerate(waits) if not count]  # heaps: of places in here,
    restorable: list[int] = []  # and of places in saved
    saved: dict[int, int] = {}  # place in here -> when
    gone = [False] * len(here)  # whether the data is no longer at its source
    steps: list[MoveStep] = []
    used = scratch = smallest = 0

    def leave(left: int) -> None:
        gone[left] = True
        for waiting in waiters[left]:
            waits[waiting] -= 1
            if not waits[waiting]:
                heappush(*((restorable, saved[waiting]) if waiting in saved else (ready, waiting)))

    order: list[int] = []  # of those saved
    for _ in range(2 * len(here)):  # each is copied, or saved and restored
        if restorable:
            move = here[order[heappop(restorable)]]
            steps.append(MoveStep("restore", move))
            used -= move.size
        elif ready:
            index = heappop(ready)
            steps.append(MoveStep("copy", here[index]))
            leave(index)
        else:
            while smallest < len(here) and gone[smallest]:
                smallest += 1
            if smallest == len(here):
                break
            saved[smallest] = len(order)
            order.append(smallest)
            steps.append(MoveStep("save", here[smallest]))
            leave(smallest)
            used += here[smallest].size
            scratch = max(scratch, used)
    return MoveOrder(tuple(steps), scratch)


def _conflicts(moves: Sequence[Move]) -> Iterator[tuple[int, int]]:
    """(first, second) where the first move would overwrite the source of the second."""
    by_source = sorted(range(len(moves)), key=lambda index: moves[index].source)
    starts = [moves[index].source for index in by_source]
    furthest = list(accumulate((moves[index].source + moves[index].size for index in by_source), max))
    for first, move in enumerate(moves):
        place = bisect_left(starts, move.target + move.size) - 1
        while place >= 0 and furthest[place] > move.target:
            second = by_source[place]
            if second != first and move.overwrites(moves[second]):
                yield first, second
            place -= 1
