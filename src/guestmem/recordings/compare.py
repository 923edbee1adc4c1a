"""Compare what a backend gave with what was recorded, and tell known divergences from new ones.

Each line of a recording is one operation; each guest touch is an operation of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from guestmem.backend import Exit
from guestmem.recordings import vocabulary as v
from guestmem.recordings.divergences import Divergence, History, divergence_of
from guestmem.recordings.runner import Outcome

__all__ = ("Verdict", "compare", "seen", "verdict")

_EXTRA = {
    v.Fstat: ("st_size", "st_blocks", "st_blksize", "st_mode", "st_nlink"),
    v.HostRead: ("signal",),
    v.HostWrite: ("signal",),
    v.MappedPages: ("pages",),
    v.PreFault: ("gpa_out", "size_out"),
}
_EXIT_FIELDS = ("errno", "value", "gpa", "len", "is_write", "data", "flags", "size")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One comparison. ``touch`` is the guest touch's index, or None; recorded is None where nothing was recorded.

    ``skipped`` says why there is nothing to compare: the operation was not issued.
    """

    operation: v.Operation
    touch: int | None
    recorded: Any
    got: Any
    agreed: bool
    divergence: Divergence | None = None
    check: str = ""
    reason: str = ""
    skipped: str = ""


def compare(operation: v.Operation, outcome: Outcome, before: History | None = None) -> Iterator[Verdict]:
    """The verdicts of one operation against what was recorded: one, or one per guest touch; before: what ran before."""
    for touch, got in seen(operation, outcome):
        recorded = _recorded(operation, touch, got)
        exits = _recorded_exits(operation, touch)
        yield verdict(operation, touch, recorded, got, outcome, exits, before)


def verdict(
    operation: v.Operation,
    touch: int | None,
    expected: Any,
    got: Any,
    outcome: Outcome,
    exits: Sequence[v.RecordedExit] | None = None,
    before: History | None = None,
) -> Verdict:
    """Compare what was expected (None: nothing) with what an outcome gave; before: what the operation came after."""
    skipped = outcome.observed.get("skipped", "")
    agreed = expected is None or expected == got
    divergence = None if agreed or skipped else divergence_of(operation, exits, before)
    return Verdict(operation, touch, expected, got, agreed, divergence, outcome.check, outcome.reason, skipped)


def seen(operation: v.Operation, outcome: Outcome) -> Iterator[tuple[int | None, Any]]:
    """What an outcome shows, in parts that can differ by themselves: the whole, or each guest touch by its index."""
    if isinstance(operation, v.RunTouch) and operation.touches and (operation.exits or outcome.exits):
        for index in range(len(operation.touches)):
            yield index, _exits(outcome, index)
    else:
        yield None, {"result": outcome.result, "errno": outcome.errno, **outcome.observed}


def _recorded(operation: v.Operation, touch: int | None, got: Any) -> Any:
    if operation.errno is UNSET:
        return None
    if touch is not None:
        exits = _recorded_exits(operation, touch)
        return {"errno": operation.errno} if exits is None else [_exit_fields(exit) for exit in exits]
    recorded = {"result": operation.result, "errno": operation.errno}
    recorded.update({name: getattr(operation, name) for name in _EXTRA.get(type(operation), ()) if name in got})
    return recorded


def _recorded_exits(operation: v.Operation, touch: int | None) -> Sequence[v.RecordedExit] | None:
    if not isinstance(operation, v.RunTouch) or touch is None:
        return None
    return operation.exits[touch] if operation.exits is not None and touch < len(operation.exits) else None


def _exits(outcome: Outcome, index: int) -> Any:
    if outcome.exits is None:
        return {"errno": outcome.errno, **outcome.observed}
    return [_exit_fields(exit) for exit in outcome.exits[index]]


def _exit_fields(exit: Exit | v.RecordedExit) -> dict[str, Any]:
    kind = exit.kind if isinstance(exit, Exit) else exit.exit
    values = {name: getattr(exit, name) for name in _EXIT_FIELDS}
    return {"exit": kind, **{name: value for name, value in values.items() if value is not None}}
