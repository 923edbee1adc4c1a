"""Why one operation of a recording ended as it did: the checks and steps it walked, under each profile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from guestmem.model.checks import Observation, observing
from guestmem.model.profiles import PROFILES, Profile
from guestmem.transcript import vocabulary as v
from guestmem.transcript.compare import compare
from guestmem.transcript.reader import RecordingError, Sequence
from guestmem.transcript.report import arguments_of
from guestmem.transcript.runner import Outcome, Runner
from guestmem.transcript.world import process_for

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
    line = sequence.line
    try:
        with process_for(sequence.begin, profile) as process:
            runner = Runner(process)
            for line, before in zip(sequence.lines, sequence.operations[:position], strict=False):
                runner.run(before)
            line = sequence.lines[position]
            return _explain(profile, runner, sequence.operations[position])
    except ValueError as error:  # UnknownHandle among them
        raise RecordingError(sequence.path, line, str(error)) from error


def _explain(profile: Profile, runner: Runner, operation: v.Operation) -> list[Explanation]:
    if isinstance(operation, v.RunTouch) and operation.touches:
        return [_touch(profile, runner, operation, index) for index in range(len(operation.touches))]
    with observing() as walked:
        outcome = runner.run(operation)
    return [_explanation(profile, operation, None, outcome, walked)]


def _touch(profile: Profile, runner: Runner, operation: v.RunTouch, index: int) -> Explanation:
    """One guest touch by itself; the earlier ones of the same operation have been made."""
    alone = v.RunTouch(
        seq=operation.seq,
        i=operation.i,
        vm=operation.vm,
        vcpu=operation.vcpu,
        boot_gpa=operation.boot_gpa,
        touches=[operation.touches[index]],
    )
    with observing() as walked:
        outcome = runner.run(alone)
    return replace(_explanation(profile, alone, 0, outcome, walked), touch=index)


def _explanation(
    profile: Profile, operation: v.Operation, touch: int | None, outcome: Outcome, walked: list[Observation]
) -> Explanation:
    op = "touch" if touch is not None else str(operation.__struct_config__.tag)
    got = next(compare(operation, outcome)).got
    return Explanation(
        profile.name, op, touch, arguments_of(operation, touch), got, outcome.check, outcome.reason, walked
    )
