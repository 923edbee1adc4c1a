"""Why one operation of a recording ended as it did: the checks and steps it walked, under each profile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from guestmem.errors import InputError
from guestmem.model.checks import Observation, observing
from guestmem.model.profiles import PROFILES, Profile
from guestmem.recordings import vocabulary as v
from guestmem.recordings.compare import compare
from guestmem.recordings.reader import RecordingError, Sequence
from guestmem.recordings.report import arguments_of
from guestmem.recordings.runner import Outcome, Runner, UnknownHandle
from guestmem.recordings.world import process_for

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


def explain_operation(sequence: Sequence, position: int) -> list[Explanation]:
    """Run a sequence up to and with the operation at this position, under every profile; one or more for each.

    RecordingError for a machine that cannot be, or an operation that cannot be run.
    """
    return [explanation for profile in PROFILES.values() for explanation in _explain_under(profile, sequence, position)]


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
        if isinstance(operation, v.RunTouch) and operation.touches:
            return [_touch(profile, runner, sequence, position, index) for index in range(len(operation.touches))]
        with observing() as walked:
            outcome = _run(runner, sequence, position, operation)
    return [_explanation(profile, operation, None, outcome, walked)]


def _run(runner: Runner, sequence: Sequence, position: int, operation: v.Operation) -> Outcome:
    try:
        return runner.run(operation)
    except UnknownHandle as error:
        raise RecordingError(sequence.path, sequence.lines[position], str(error)) from error


def _touch(profile: Profile, runner: Runner, sequence: Sequence, position: int, index: int) -> Explanation:
    """One guest touch by itself; the earlier ones of the same operation have been made."""
    operation = sequence.operations[position]
    assert isinstance(operation, v.RunTouch)
    alone = v.RunTouch(
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
    profile: Profile, operation: v.Operation, touch: int | None, outcome: Outcome, walked: list[Observation]
) -> Explanation:
    op = "touch" if touch is not None else str(operation.__struct_config__.tag)
    got = next(compare(operation, outcome)).got
    return Explanation(
        profile.name, op, touch, arguments_of(operation, touch), got, outcome.check, outcome.reason, walked
    )
