"""Moving the data of bindings to other offsets of the same file, never overwriting what is still needed.

A move may write only where no other data waits to be moved, so it waits for every move whose source it would
overwrite. Where moves wait for one another in a circle, the smallest of them go through scratch space, which is not
proved to be the least (moves are whole: none is cut in parts). A move that overlaps itself is one memmove.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    waits_for = {move: {other for other in here if other is not move and move.overwrites(other)} for move in here}
    saved: list[Move] = []
    steps: list[MoveStep] = []
    scratch = 0

    def leave() -> None:
        """The data of the last step is no longer at its source."""
        here.remove(steps[-1].move)
        for waiting in waits_for.values():
            waiting.discard(steps[-1].move)

    while here or saved:
        if (move := next((move for move in saved if not waits_for[move]), None)) is not None:
            saved.remove(move)
            steps.append(MoveStep("restore", move))
        elif (move := next((move for move in here if not waits_for[move]), None)) is not None:
            steps.append(MoveStep("copy", move))
            leave()
        else:
            saved.append(here[0])
            steps.append(MoveStep("save", here[0]))
            leave()
            scratch = max(scratch, sum(move.size for move in saved))
    return MoveOrder(tuple(steps), scratch)
