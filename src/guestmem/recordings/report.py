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
from guestmem.recordings import vocabulary as v
from guestmem.recordings.compare import Verdict, compare
from guestmem.recordings.difference import ended
from guestmem.recordings.divergences import History
from guestmem.recordings.play import Place
from guestmem.recordings.reader import RecordingError, Sequence, read_sequences
from guestmem.recordings.record import Write, recorded

__all__ = ("Difference", "FileReport", "arguments_of", "run_recording")

_OBSERVED = frozenset(("result", "errno", "exits", "signal", "gpa_out", "size_out", "livelock", "pages"))
_NO_ARGUMENTS = _OBSERVED | {"seq", "i", "op", "touches"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One operation whose outcome was not the recorded one, where it stands, and what decided if a model says."""

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
    """The counts of one recording. outcomes counts (operation, how it ended), skipped why something was not issued."""

    file: str
    profiles: list[str] = field(default_factory=list)
    sequences: int = 0
    operations: int = 0
    agreed: int = 0
    known_divergences: int = 0
    compared: int = 0
    differences: list[Difference] = field(default_factory=list)
    divergences: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)


def run_recording(
    path: Path, place: Place, on_sequence: Callable[[], None] = lambda: None, write: Write | None = None
) -> FileReport:
    """Run every sequence of a recording, and write what was observed; RecordingError, OSError, BackendUnavailable."""
    report = FileReport(str(path))
    for sequence in read_sequences(path):
        report.sequences += 1
        try:
            profile = place.title(sequence.begin)
            observed = list(_run_sequence(path, sequence, place, report))
        except RecordingError:
            raise
        except InputError as error:  # a machine that cannot be
            raise RecordingError(str(path), sequence.line, str(error)) from error
        if profile not in report.profiles:
            report.profiles.append(profile)
        if write is not None:
            named = {"profile": place.profile(sequence.begin), "kernel": f"{place.name}: {profile}"}
            write(msgspec.structs.replace(sequence.begin, **named), observed)
        on_sequence()
    return report


def _run_sequence(path: Path, sequence: Sequence, place: Place, report: FileReport) -> Iterator[v.Operation]:
    with closing(place.run(sequence.begin, sequence.operations)) as outcomes:
        for index, (line, outcome) in enumerate(zip(sequence.lines, outcomes, strict=True)):
            operation = sequence.operations[index]
            if "unknown" in outcome.observed:
                raise RecordingError(str(path), line, outcome.reason)
            for verdict in compare(operation, outcome, History(sequence.begin, sequence.operations, index)):
                _count(report, verdict, path, line)
            yield recorded(operation, outcome)


def _count(report: FileReport, verdict: Verdict, path: Path, line: int) -> None:
    operation = verdict.operation
    op = "touch" if verdict.touch is not None else str(operation.__struct_config__.tag)
    report.operations += 1
    if verdict.skipped:
        report.skipped[verdict.skipped] += 1
        return
    report.outcomes[op, ended(verdict.got)] += 1
    report.compared += verdict.recorded is not None
    if verdict.agreed:
        report.agreed += 1
    elif verdict.divergence is not None:
        report.known_divergences += 1
        report.divergences[verdict.divergence.name] += 1
    else:
        report.differences.append(
            Difference(
                str(path),
                line,
                operation.seq,
                operation.i,
                op,
                verdict.touch,
                arguments_of(operation, verdict.touch),
                verdict.recorded,
                verdict.got,
                verdict.check,
                verdict.reason,
            )
        )


def arguments_of(operation: v.Operation, touch: int | None = None) -> dict[str, Any]:
    """The arguments of an operation, or of one of its guest touches, by name."""
    if touch is not None and isinstance(operation, v.RunTouch):
        return {"vcpu": operation.vcpu, **msgspec.to_builtins(operation.touches[touch])}
    values = msgspec.to_builtins(operation)
    return {name: value for name, value in values.items() if name not in _NO_ARGUMENTS and not name.startswith("st_")}
