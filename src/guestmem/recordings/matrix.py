"""What each of several kernels answers: a row for each kind of call that they do not all answer alike.

Every sequence is run on all of them. From the first operation on that one kernel does and another refuses, the two are
in different states; the one that differs from the last kernel then leaves the sequence. So every row compares kernels
that were in the same state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from guestmem.errors import InputError
from guestmem.recordings.calls import Fstat, HostRead
from guestmem.recordings.ioctls import CheckExtension, MappedPages
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Answered, Outcome, Skipped, ended
from guestmem.recordings.reader import RecordingError, read_sequences
from guestmem.recordings.reader import Sequence as Recorded
from guestmem.recordings.target import Target

__all__ = ("NOT_ASKED", "Matrix", "AnswerRow", "behaviour")

NOT_ASKED: Final = ""  # what a kernel that left the sequence answers
_QUERIES: Final = (CheckExtension, Fstat, HostRead, MappedPages)  # they change nothing


@dataclass(slots=True)
class AnswerRow:
    """One kind of call: its answers, one for each kernel, and the checks that decide, where a model knows.

    example is the first such call: its sequence, its place there, and its arguments; count is how many there are.
    """

    op: str
    check: str
    rule: str
    answers: tuple[str, ...]
    sequence: str
    index: int
    arguments: dict[str, Any]
    count: int = 1


@dataclass(frozen=True, slots=True)
class Matrix:
    """The rows, and of how many calls that all kernels were asked."""

    kernels: tuple[str, ...]
    rows: tuple[AnswerRow, ...]
    operations: int
    sequences: int


def behaviour(
    paths: Iterable[Path],
    kernels: Sequence[Target],
    models: Sequence[Target],
    on_sequence: Callable[[], None] = lambda: None,
) -> Matrix:
    """Run every sequence on all kernels; the models say which check decides. RecordingError, OSError."""
    rows: dict[tuple[str, ...], AnswerRow] = {}
    operations = sequences = 0
    for path in paths:
        for recorded in read_sequences(path):
            try:
                operations += _compare(recorded, kernels, models, rows)
            except InputError as error:
                raise RecordingError(str(path), recorded.line, str(error)) from error
            sequences += 1
            on_sequence()
    found = sorted(rows.values(), key=lambda row: (row.op, row.check, row.answers))
    return Matrix(tuple(kernel.name for kernel in kernels), tuple(found), operations, sequences)


def _compare(
    recorded: Recorded, kernels: Sequence[Target], models: Sequence[Target], rows: dict[tuple[str, ...], AnswerRow]
) -> int:
    """Compare one sequence; how many operations all were asked."""
    runs = [_outcomes(recorded, kernel) for kernel in kernels]
    there = list(range(len(kernels)))
    asked = 0
    explained: list[list[Outcome]] | None = None
    for index, operation in enumerate(recorded.operations):
        outcomes = [runs[kernel][index] for kernel in there]
        if len(there) < 2 or any(isinstance(outcome, Skipped) for outcome in outcomes):
            continue
        asked += 1
        answers = {kernel: _answer(operation, runs[kernel][index]) for kernel in there}
        if len(set(answers.values())) == 1:
            continue
        if explained is None:
            explained = [_outcomes(recorded, model) for model in models]
        check, rule = _decided([run[index] for run in explained], set(answers.values()))
        said = tuple(answers.get(kernel, NOT_ASKED) for kernel in range(len(kernels)))
        key = (operation.name(), check, *said)
        if key in rows:
            rows[key].count += 1
        else:
            arguments = operation.arguments()
            rows[key] = AnswerRow(operation.name(), check, rule, said, recorded.begin.seq, index, arguments)
        last = runs[there[-1]][index]
        there = [each for each in there if _same_state(operation, runs[each][index], last)]
    return asked


def _outcomes(recorded: Recorded, target: Target) -> list[Outcome]:
    operations = tuple(recorded.operations)
    with closing(target.run(recorded.begin, operations, limited=True)) as run:
        found = list(run)
    return [*found, *[Skipped("the process ended")] * (len(operations) - len(found))]


def _answer(operation: Operation, outcome: Outcome) -> str:
    """How it ended; of a question, what was answered."""
    if not isinstance(outcome, Answered):
        return ended(outcome)
    parts = outcome.operation.parts
    if parts:
        return ", ".join(dict.fromkeys(ended(outcome, touch) for touch in range(parts)))
    if isinstance(operation, CheckExtension) and not outcome.operation.errno:
        return str(outcome.operation.result)
    return ended(outcome)


def _same_state(operation: Operation, one: Outcome, other: Outcome) -> bool:
    """Whether two kernels are in one state after answers that may differ."""
    if isinstance(operation, _QUERIES):
        return True
    return (ended(one) == "ok") == (ended(other) == "ok") and type(one) is type(other)


def _decided(outcomes: Sequence[Outcome], answers: set[str]) -> tuple[str, str]:
    """The checks by which models refuse as a kernel did, and their rules without the values."""
    refused = [outcome for outcome in outcomes if isinstance(outcome, Answered) and ended(outcome) in answers]
    rules = {outcome.check: outcome.reason.partition(":")[0] for outcome in refused if outcome.check}
    return ", ".join(rules), "; ".join(rules.values())
