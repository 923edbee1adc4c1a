"""Moving the data of bindings to other offsets of the same file, never overwriting what is still needed.

A move may write only where no other data waits to be moved, so it waits for every move whose source it would
overwrite. Where moves wait for one another in a circle, some go through scratch space; the least scratch is found
exactly for circles of up to EXACT_LIMIT moves (moves are whole: none is cut in parts). A move that overlaps itself is
one memmove.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Literal

__all__ = ("EXACT_LIMIT", "Move", "Schedule", "Step", "schedule")

EXACT_LIMIT = 8  # at most 3**8 states of a circle


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
class Step:
    """copy: within the file; save: from the file to scratch; restore: from scratch to the file. Offsets are bytes."""

    kind: Literal["copy", "save", "restore"]
    move: Move


@dataclass(frozen=True, slots=True)
class Schedule:
    """Steps in order; scratch is the most bytes of scratch space in use; least says that no order needs less."""

    steps: tuple[Step, ...]
    scratch: int
    least: bool


_State = tuple[frozenset[Move], frozenset[Move]]  # data still at its source, data in scratch


def schedule(moves: Sequence[Move]) -> Schedule:
    """Order the moves. Moves whose source is their target need nothing."""
    waiting = [move for move in moves if move.source != move.target]
    steps: list[Step] = []
    scratch, least = 0, True
    for circle in _circles(waiting):
        if len(circle) <= EXACT_LIMIT:
            found, most = _least_scratch(circle)
        else:
            found, most, least = *_smallest_first(circle), False
        steps += found
        scratch = max(scratch, most)
    return Schedule(tuple(steps), scratch, least)


def _circles(moves: Sequence[Move]) -> list[list[Move]]:
    """Moves that wait for one another, directly or not, each circle after all that it waits for."""
    before = {one: {two for two in moves if two is not one and one.overwrites(two)} for one in moves}
    for via in moves:  # transitive closure: few moves, and each step is a set union
        for one in moves:
            if via in before[one]:
                before[one] |= before[via]
    circles: list[list[Move]] = []
    # What waits for a whole circle has more before it than any move of the circle has, itself not counted.
    for move in sorted(moves, key=lambda move: (len(before[move] - {move}), move.source)):
        for circle in circles:
            if move in before[circle[0]] and circle[0] in before[move]:
                circle.append(move)
                break
        else:
            circles.append([move])
    return circles


def _steps_from(state: _State) -> Iterator[tuple[Step, _State]]:
    """Everything that can be done next without losing data."""
    here, saved = state
    for move in sorted(here, key=lambda move: move.source):
        rest = here - {move}
        if not any(move.overwrites(other) for other in rest):
            yield Step("copy", move), (rest, saved)
        yield Step("save", move), (rest, saved | {move})
    for move in sorted(saved, key=lambda move: move.source):
        if not any(move.overwrites(other) for other in here):
            yield Step("restore", move), (here, saved - {move})


def _least_scratch(circle: list[Move]) -> tuple[list[Step], int]:
    """The order with the least peak of scratch, then the fewest steps (Dijkstra over what is where)."""
    start: _State = (frozenset(circle), frozenset())
    heap: list[tuple[int, int, int, _State, tuple[Step, ...]]] = [(0, 0, 0, start, ())]
    seen: set[_State] = set()
    count = 0
    while True:
        most, length, _, state, steps = heappop(heap)
        if not any(state):
            return list(steps), most
        if state in seen:
            continue
        seen.add(state)
        for step, after in _steps_from(state):
            count += 1
            peak = max(most, sum(move.size for move in after[1]))
            heappush(heap, (peak, length + 1, count, after, (*steps, step)))


def _smallest_first(circle: list[Move]) -> tuple[list[Step], int]:
    """Copy what can be copied, else save the smallest that waits; restore at the end."""
    here, saved = set(circle), list[Move]()
    steps: list[Step] = []
    while here:
        free = [move for move in here if not any(move.overwrites(other) for other in here - {move})]
        if free:
            steps += [Step("copy", move) for move in free[:1]]
            here.remove(free[0])
        else:
            smallest = min(here, key=lambda move: (move.size, move.source))
            here.remove(smallest)
            saved.append(smallest)
            steps.append(Step("save", smallest))
    return steps + [Step("restore", move) for move in saved], sum(move.size for move in saved)
