"""Run whole recordings and count: what agreed, what is a known divergence, what differs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from guestmem.errors import InputError
from guestmem.recordings.compare import Verdict, compare
from guestmem.recordings.divergences import History
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Skipped, UnknownName
from guestmem.recordings.reader import RecordingError, Sequence, read_sequences
from guestmem.recordings.target import Target
from guestmem.recordings.writer import Write, recorded

__all__ = ("Disagreement", "FileReport", "run_recording")


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One operation whose outcome was not the recorded one, on which line, and what decided if a model says."""

    file: str
    line: int
    sequence: str
    index: int
    op: str
    touch: int | None
    arguments: dict[str, Any]
    recorded: Any
    got: Any
    check: str
    reason: str


@dataclass(slots=True)
class FileReport:
    """The counts of one recording. outcomes counts (operation, how it ended), skipped why something was skipped."""

    file: str
    profiles: list[str] = field(default_factory=list)
    sequences: int = 0
    operations: int = 0
    agreed: int = 0
    known_divergences: int = 0
    compared: int = 0
    differences: list[Disagreement] = field(default_factory=list)
    divergences: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)


def run_recording(
    path: Path, target: Target, on_sequence: Callable[[], None] = lambda: None, write: Write | None = None
) -> FileReport:
    """Run every sequence of a recording, and write what was observed; RecordingError, OSError, BackendUnavailable."""
    report = FileReport(str(path))
    for sequence in read_sequences(path):
        report.sequences += 1
        try:
            profile = target.title(sequence.begin)
            observed = list(_run_sequence(path, sequence, target, report))
        except RecordingError:
            raise
        except InputError as error:  # a machine that cannot be
            raise RecordingError(str(path), sequence.line, str(error)) from error
        if profile not in report.profiles:
            report.profiles.append(profile)
        if write is not None:
            named = {"profile": target.profile(sequence.begin), "kernel": f"{target.name}: {profile}"}
            write(msgspec.structs.replace(sequence.begin, **named), observed)
        on_sequence()
    return report


def _run_sequence(path: Path, sequence: Sequence, target: Target, report: FileReport) -> Iterator[Operation]:
    with closing(target.run(sequence.begin, sequence.operations)) as outcomes:
        for index, (line, outcome) in enumerate(zip(sequence.lines, outcomes, strict=True)):
            operation = sequence.operations[index]
            if isinstance(outcome, UnknownName):
                raise RecordingError(str(path), line, outcome.problem)
            for verdict in compare(operation, outcome, History(sequence.begin, sequence.operations, index)):
                _count(report, verdict, path, line)
            yield recorded(operation, outcome)


def _count(report: FileReport, verdict: Verdict, path: Path, line: int) -> None:
    operation = verdict.operation
    report.operations += 1
    if isinstance(verdict.outcome, Skipped):
        report.skipped[verdict.outcome.why] += 1
        return
    report.outcomes[verdict.op, verdict.ended] += 1
    report.compared += verdict.expected is not None
    if verdict.agreed:
        report.agreed += 1
    elif verdict.divergence is not None:
        report.known_divergences += 1
        report.divergences[verdict.divergence.name] += 1
    else:
        report.differences.append(
            Disagreement(
                str(path),
                line,
                operation.seq,
                operation.i,
                verdict.op,
                verdict.touch,
                operation.arguments(verdict.touch),
                verdict.recorded,
                verdict.got,
                verdict.check,
                verdict.reason,
            )
        )
