"""Compare one operation's outcome with another: the recorded one, or that of a second backend.

A guest touch that has an outcome of its own is compared by itself. What differs is a known divergence, or new.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from guestmem.recordings.divergences import Divergence, History, divergence_of
from guestmem.recordings.ioctls import RecordedExit, RunTouch
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Answered, Outcome, Skipped, ended, plain, reason

__all__ = ("Verdict", "compare", "verdicts")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One comparison. ``touch`` is the guest touch's index, or None for the whole operation.

    expected is None where nothing was recorded; then anything agrees.
    """

    operation: Operation
    touch: int | None
    expected: Outcome | None
    outcome: Outcome
    agreed: bool
    divergence: Divergence | None = None

    @property
    def op(self) -> str:
        """What was compared, by the name it has in reports."""
        return self.operation.name() if self.touch is None else "touch"

    @property
    def recorded(self) -> Any:
        """What was expected, as plain values; None: nothing."""
        return None if self.expected is None else plain(self.expected, self.touch)

    @property
    def got(self) -> Any:
        """What became of it, as plain values."""
        return plain(self.outcome, self.touch)

    @property
    def ended(self) -> str:
        """How it ended, in a word or two."""
        return ended(self.outcome, self.touch)

    @property
    def check(self) -> str:
        """The check that refused it, if a model says."""
        return self.outcome.check if isinstance(self.outcome, Answered) else ""

    @property
    def reason(self) -> str:
        """Why it ended so, if somebody says."""
        return reason(self.outcome)


def compare(operation: Operation, outcome: Outcome, before: History | None = None) -> Iterator[Verdict]:
    """The verdicts of one operation against what was recorded: one, or one per guest touch; before: what ran before."""
    return verdicts(operation, Answered(operation) if operation.was_run else None, outcome, before)


def verdicts(
    operation: Operation, expected: Outcome | None, outcome: Outcome, before: History | None = None
) -> Iterator[Verdict]:
    """The verdicts of one operation against what was expected of it; before: what it came after."""
    touches = max(_parts(expected), _parts(outcome))
    for touch in range(touches) if touches else (None,):
        agreed = expected is None or _agree(expected, outcome, touch)
        divergence = None
        if not agreed and not isinstance(outcome, Skipped):
            divergence = divergence_of(operation, _exits(expected, touch), before)
        yield Verdict(operation, touch, expected, outcome, agreed, divergence)


def _parts(outcome: Outcome | None) -> int:
    parts: int = outcome.operation.parts if isinstance(outcome, Answered) else 0
    return parts


def _agree(a: Outcome, b: Outcome, touch: int | None) -> bool:
    if isinstance(a, Answered) and isinstance(b, Answered):
        agreed: bool = a.operation.agrees(b.operation, touch)
        return agreed
    return a == b


def _exits(expected: Outcome | None, touch: int | None) -> list[RecordedExit] | None:
    if isinstance(expected, Answered) and isinstance(expected.operation, RunTouch):
        return expected.operation.exits_of(touch)
    return None
