"""A whole sequence run where the backend is: in a machine that is far from here, one request instead of thousands.

The caller's half makes the request and reads the answer; ``work`` is the other half, a module that the lab's guest is
given. Both halves are ``play``: nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from guestmem.backend import Backend
from guestmem.recordings.limits import Limits
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Answered, Outcome
from guestmem.recordings.play import ANY_OUTCOME, play
from guestmem.recordings.runner import prepare
from guestmem.recordings.vocabulary import OPERATIONS, Line
from guestmem.text import counted

__all__ = ("answer", "request", "work")

_ENCODER: Final = msgspec.msgpack.Encoder()
_REQUEST: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(tuple[bool, list[Line]])
_ANSWER: Final[msgspec.msgpack.Decoder[Any]] = msgspec.msgpack.Decoder(list[ANY_OUTCOME])


prepare(OPERATIONS)


def request(operations: Sequence[Operation], *, limited: bool) -> bytes:
    """The sequence as it travels; limited: held to the limits of a real kernel."""
    return _ENCODER.encode((limited, operations))


def work(backend: Backend, data: bytes) -> bytes:
    """Run a request on a fresh backend; the outcomes as they travel."""
    limited, operations = _REQUEST.decode(data)
    return _ENCODER.encode(list(play(backend, operations, Limits() if limited else None)))


def answer(data: bytes, operations: Sequence[Operation]) -> list[Outcome]:
    """The outcomes that arrived, one for each operation; ValueError if they are not that."""
    try:
        outcomes: list[Outcome] = _ANSWER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as wrong:
        raise ValueError(f"no outcomes: {wrong}") from wrong
    if len(outcomes) != len(operations):
        raise ValueError(f"{counted(len(operations), 'operation')} had {counted(len(outcomes), 'outcome')}")
    for operation, outcome in zip(operations, outcomes, strict=True):
        if isinstance(outcome, Answered) and type(outcome.operation) is not type(operation):
            raise ValueError(f"a {type(operation).__name__} was answered by a {type(outcome.operation).__name__}")
    return outcomes
