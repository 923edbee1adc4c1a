"""The same operations on two targets: the first difference of a sequence, and differences grouped by cause.

Only the first matters: what comes after it may be its consequence. So may what follows a known divergence, if it lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guestmem.errors import InputError
from guestmem.recordings.compare import Verdict, verdicts
from guestmem.recordings.divergences import History
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Answered, Outcome, Skipped, ended, plain, reason
from guestmem.recordings.reader import RecordingError, read_sequences
from guestmem.recordings.target import Target
from guestmem.recordings.vocabulary import Begin

__all__ = (
    "Cause",
    "Collected",
    "Difference",
    "Group",
    "Pair",
    "compare_targets",
    "diff_recordings",
    "first_difference",
    "grouped",
)


@dataclass(frozen=True, slots=True)
class Cause:
    """What makes two differences the same one: the operation, how it ended on each side, and the model's check."""

    op: str
    a: str
    b: str
    check: str
    divergence: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of a sequence: up to which operation it goes, where, and what each side gave."""

    begin: Begin
    operations: tuple[Operation, ...]  # the last one differs
    touch: int | None
    a: Any
    b: Any
    cause: Cause
    reason: str = ""


@dataclass(slots=True)
class Pair:
    """The comparison of one sequence. ``operations`` counts guest touches one by one, up to the first difference."""

    operations: int = 0
    skipped: int = 0
    known: list[Difference] = field(default_factory=list)
    new: Difference | None = None


@dataclass(slots=True)
class Group:
    """Differences of one cause; ``smallest`` needs the fewest operations."""

    cause: Cause
    smallest: Difference
    count: int = 1


@dataclass(slots=True)
class Collected:
    """What comparing many sequences gave. ``operations`` counts guest touches one by one, up to first differences."""

    sequences: int = 0
    operations: int = 0
    skipped: int = 0
    known: list[Difference] = field(default_factory=list)
    new: list[Difference] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Count one sequence."""
        self.sequences += 1
        self.operations += pair.operations
        self.skipped += pair.skipped
        self.known += pair.known
        if pair.new is not None:
            self.new.append(pair.new)


def diff_recordings(
    paths: Iterable[Path], a: Target, b: Target, on_sequence: Callable[[], None] = lambda: None
) -> Collected:
    """Run every sequence of recordings on both targets, whatever was recorded; RecordingError, OSError."""
    collected = Collected()
    for path in paths:
        for sequence in read_sequences(path):
            try:
                collected.add(compare_targets(sequence.begin, sequence.operations, a, b))
            except InputError as error:
                raise RecordingError(str(path), sequence.line, str(error)) from error
            on_sequence()
    return collected


def compare_targets(begin: Begin, operations: Iterable[Operation], a: Target, b: Target) -> Pair:
    """Run a sequence on both; if one of them is real, both are held to its limits."""
    limited = a.real or b.real
    chosen = tuple(operations)
    with closing(a.run(begin, chosen, limited=limited)) as on_a, closing(b.run(begin, chosen, limited=limited)) as on_b:
        return first_difference(begin, chosen, on_a, on_b)


def first_difference(begin: Begin, operations: Sequence[Operation], a: Iterable[Outcome], b: Iterable[Outcome]) -> Pair:
    """Compare outcome by outcome until one differs by what no listed divergence explains."""
    pair = Pair()
    for index, (operation, on_a, on_b) in enumerate(zip(operations, a, b, strict=False)):
        if isinstance(on_a, Skipped) or isinstance(on_b, Skipped):
            pair.skipped += 1
            continue
        for compared in verdicts(operation, on_a, on_b, History(begin, operations, index)):
            pair.operations += 1
            if compared.agreed:
                continue
            difference = _difference(begin, operations[: index + 1], compared, on_a, on_b)
            if compared.divergence is None:
                pair.new = difference
                return pair
            pair.known.append(difference)
            if compared.divergence.lasting:
                return pair
    return pair


def grouped(differences: Iterable[Difference]) -> list[Group]:
    """One group for each cause, the one with the smallest example first."""
    groups: dict[Cause, Group] = {}
    for difference in differences:
        group = groups.get(difference.cause)
        if group is None:
            groups[difference.cause] = Group(difference.cause, difference)
            continue
        group.count += 1
        if len(difference.operations) < len(group.smallest.operations):
            group.smallest = difference
    return sorted(groups.values(), key=lambda group: len(group.smallest.operations))


def _difference(begin: Begin, operations: Sequence[Operation], compared: Verdict, a: Outcome, b: Outcome) -> Difference:
    touch = compared.touch
    values = plain(a, touch), plain(b, touch)
    ended_a, ended_b = ended(a, touch), ended(b, touch)
    if ended_a == ended_b:
        ended_b = f"{ended_b}, other {', '.join(_differing(*values))}"
    divergence = compared.divergence.name if compared.divergence else ""
    check_a, check_b = (each.check if isinstance(each, Answered) else "" for each in (a, b))
    cause = Cause(compared.op, ended_a, ended_b, check_a or check_b, divergence)
    why = reason(a) if check_a or not reason(b) else reason(b)
    return Difference(begin, tuple(operations), touch, *values, cause, why)


def _differing(a: Any, b: Any) -> list[str]:
    """Both ended alike, so the cause is which of the observed values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    if len(a) != len(b):
        return ["number of exits"]
    return sorted({name for x, y in zip(a, b, strict=True) for name in _differing(x, y)})
