"""Compare what a backend gave with what was recorded, and tell known divergences from new ones.

Each line of a recording is one operation; each guest touch is an operation of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from msgspec import UNSET

from guestmem.backend import Exit
from guestmem.divergences import Divergence, divergence_of
from guestmem.transcript import vocabulary as v
from guestmem.transcript.runner import Outcome

__all__ = ("Verdict", "compare")

_EXTRA = {
    v.Fstat: ("st_size", "st_blocks", "st_blksize", "st_mode", "st_nlink"),
    v.HostRead: ("signal",),
    v.HostWrite: ("signal",),
    v.PreFault: ("gpa_out", "size_out"),
}
_EXIT_FIELDS = ("errno", "value", "gpa", "len", "is_write", "data", "flags", "size")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One comparison. ``touch`` is the guest touch's index, or None; recorded is None where nothing was recorded."""

    operation: v.Operation
    touch: int | None
    recorded: Any
    got: Any
    agreed: bool
    divergence: Divergence | None = None
    check: str = ""
    reason: str = ""


def compare(operation: v.Operation, outcome: Outcome) -> Iterator[Verdict]:
    """The verdicts of one operation: one, or one per guest touch."""
    if isinstance(operation, v.RunTouch) and operation.touches and (operation.exits or outcome.exits):
        yield from _compare_touches(operation, outcome)
        return
    got = {"result": outcome.result, "errno": outcome.errno, **outcome.observed}
    if operation.errno is UNSET:
        yield Verdict(operation, None, None, got, True, None, outcome.check, outcome.reason)
        return
    recorded = {"result": operation.result, "errno": operation.errno}
    recorded.update({name: getattr(operation, name) for name in _EXTRA.get(type(operation), ()) if name in got})
    agreed = recorded == got
    divergence = None if agreed else divergence_of(operation, None)
    yield Verdict(operation, None, recorded, got, agreed, divergence, outcome.check, outcome.reason)


def _compare_touches(operation: v.RunTouch, outcome: Outcome) -> Iterator[Verdict]:
    for index in range(len(operation.touches)):
        got = _exits(outcome, index)
        if operation.errno is UNSET:
            yield Verdict(operation, index, None, got, True, None, outcome.check, outcome.reason)
            continue
        exits = operation.exits[index] if operation.exits is not None and index < len(operation.exits) else None
        recorded = {"errno": operation.errno} if exits is None else [_exit_fields(exit) for exit in exits]
        agreed = recorded == got
        divergence = None if agreed else divergence_of(operation, exits)
        yield Verdict(operation, index, recorded, got, agreed, divergence, outcome.check, outcome.reason)


def _exits(outcome: Outcome, index: int) -> Any:
    if outcome.exits is None:
        return {"errno": outcome.errno}
    return [_exit_fields(exit) for exit in outcome.exits[index]]


def _exit_fields(exit: Exit | v.RecordedExit) -> dict[str, Any]:
    kind = exit.kind if isinstance(exit, Exit) else exit.exit
    values = {name: getattr(exit, name) for name in _EXIT_FIELDS}
    return {"exit": kind, **{name: value for name, value in values.items() if value is not None}}
