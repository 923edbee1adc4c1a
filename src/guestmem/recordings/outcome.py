"""What became of one operation on a backend: one type for each way it can end."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from guestmem.recordings.operation import Operation

__all__ = (
    "Answered",
    "GuestLeft",
    "NotRun",
    "Outcome",
    "ProcessEnded",
    "Skipped",
    "UnknownName",
    "ended",
    "plain",
    "reason",
)

AnyOperation = TypeVar("AnyOperation", bound=Operation)


class Answered(msgspec.Struct, Generic[AnyOperation], tag=True):
    """The kernel answered: the operation with its result, errno and whatever else it observes.

    A model says which check refused it and why.
    """

    operation: AnyOperation
    check: str = ""
    reason: str = ""


class Skipped(msgspec.Struct, tag=True):
    """It was not asked for: a limit, nothing to see on this backend, or a process that had ended before."""

    why: str


class NotRun(msgspec.Struct, tag=True):
    """It could not be made: a mapping that it works on does not exist on this backend."""

    why: str


class ProcessEnded(msgspec.Struct, tag=True):
    """The process ended in it, or did not come back from it."""

    how: str


class GuestLeft(msgspec.Struct, tag=True):
    """The guest left in a way that no access to memory can cause (``errors.UnexpectedExit``)."""

    how: str


class UnknownName(msgspec.Struct, tag=True):
    """It names what no operation before it makes: the recording is wrong."""

    problem: str


Outcome = Answered[Any] | Skipped | NotRun | ProcessEnded | GuestLeft | UnknownName


def ended(outcome: Outcome, touch: int | None = None) -> str:
    """How it ended, in a word or two: "ok", an errno, a signal, an exit of the guest, "not run"."""
    if isinstance(outcome, Answered):
        ended: str = outcome.operation.ended(touch)
        return ended
    return _ENDED[type(outcome)][0]


def reason(outcome: Outcome) -> str:
    """Why it ended so, as far as somebody says."""
    match outcome:
        case Answered(reason=reason) | Skipped(reason) | NotRun(reason) | GuestLeft(reason) | UnknownName(reason):
            return reason
        case ProcessEnded(how):
            return f"the process: {how}"


def plain(outcome: Outcome, touch: int | None = None) -> Any:
    """The outcome, or that of one guest touch, as the plain values that reports show."""
    if isinstance(outcome, Answered):
        return outcome.operation.observed(touch)
    [text] = msgspec.structs.astuple(outcome)
    observed = {_ENDED[type(outcome)][1]: text}
    return {"errno": None, **observed} if touch is not None else {"result": None, "errno": None, **observed}


# How a word says it, and the name it has among plain values.
_ENDED = {
    Skipped: ("skipped", "skipped"),
    NotRun: ("not run", "not_issued"),
    ProcessEnded: ("process ended", "process_ended"),
    GuestLeft: ("unexpected exit", "unexpected_exit"),
    UnknownName: ("unknown name", "unknown"),
}
