"""Why one operation of a recording ended as it did: the checks and steps it walked, under each profile."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from guestmem.errors import InputError
from guestmem.model.checks import Observation, observing
from guestmem.model.profiles import HISTORY, PROFILES, Profile
from guestmem.recordings.ioctls import RunTouch
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Answered, Outcome, UnknownName, plain, reason
from guestmem.recordings.reader import RecordingError, Sequence
from guestmem.recordings.runner import Runner
from guestmem.targets import process_for

__all__ = ("Explanation", "explain_operation")


@dataclass(frozen=True, slots=True)
class Explanation:
    """One operation under one profile. outcome is what the model gave; walked are its checks and steps, in order."""

    profile: str
    op: str
    touch: int | None
    arguments: dict[str, Any]
    outcome: Any
    check: str
    reason: str
    walked: list[Observation]


def explain_operation(sequence: Sequence, position: int, profiles: Iterable[Profile] = ()) -> list[Explanation]:
    """Run a sequence up to and with the operation at this position, under each profile; one or more for each.

    No profile: all that the recording's own could be compared with, the kernels or the systems before them.
    RecordingError for a machine that cannot be, or an operation that cannot be run.
    """
    alike = HISTORY if sequence.begin.profile in HISTORY else PROFILES
    asked = profiles or alike.values()
    return [explanation for profile in asked for explanation in _explain_under(profile, sequence, position)]


def _explain_under(profile: Profile, sequence: Sequence, position: int) -> list[Explanation]:
    operation = sequence.operations[position]
    try:
        process = process_for(sequence.begin, profile)
    except InputError as error:
        raise RecordingError(sequence.path, sequence.line, str(error)) from error
    with process:
        runner = Runner(process)
        for number, before in enumerate(sequence.operations[:position]):
            _run(runner, sequence, number, before)
        if isinstance(operation, RunTouch) and operation.touches:
            return [_touch(profile, runner, sequence, position, index) for index in range(len(operation.touches))]
        with observing() as walked:
            outcome = _run(runner, sequence, position, operation)
    return [_explanation(profile, operation, None, outcome, walked)]


def _run(runner: Runner, sequence: Sequence, position: int, operation: Operation) -> Outcome:
    outcome = runner.run(operation)
    if isinstance(outcome, UnknownName):
        raise RecordingError(sequence.path, sequence.lines[position], outcome.problem)
    return outcome


def _touch(profile: Profile, runner: Runner, sequence: Sequence, position: int, index: int) -> Explanation:
    """One guest touch by itself; the earlier ones of the same operation have been made."""
    operation = sequence.operations[position]
    assert isinstance(operation, RunTouch)
    alone = RunTouch(
        seq=operation.seq,
        i=operation.i,
        vm=operation.vm,
        vcpu=operation.vcpu,
        boot_gpa=operation.boot_gpa,
        touches=[operation.touches[index]],
    )
    with observing() as walked:
        outcome = _run(runner, sequence, position, alone)
    return replace(_explanation(profile, alone, 0, outcome, walked), touch=index)


def _explanation(
    profile: Profile, operation: Operation, touch: int | None, outcome: Outcome, walked: list[Observation]
) -> Explanation:
    return Explanation(
        profile.name,
        operation.name() if touch is None else "touch",
        touch,
        operation.arguments(touch),
        plain(outcome, touch),
        outcome.check if isinstance(outcome, Answered) else "",
        reason(outcome),
        walked,
    )
