"""Play a whole sequence on a backend: one outcome for each operation, never an exception and never a false success."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import msgspec

from guestmem.backend import Backend
from guestmem.recordings.child import ChildEnded, messages
from guestmem.recordings.limits import Limits
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import (
    Answered,
    GuestLeft,
    NotRun,
    Outcome,
    ProcessEnded,
    Skipped,
    UnknownName,
)
from guestmem.recordings.runner import Runner
from guestmem.recordings.vocabulary import Line

__all__ = ("ANY_OUTCOME", "SEQUENCE_LIMIT_S", "after_the_end", "play", "play_in_child")

SEQUENCE_LIMIT_S: Final = 30.0  # for one operation; KVM_RUN has its own of 5 s for each access
ANY_OUTCOME: Final[Any] = Answered[Line] | Skipped | NotRun | ProcessEnded | GuestLeft | UnknownName  # for msgspec


def play(backend: Backend, operations: Sequence[Operation], limits: Limits | None) -> Iterator[Outcome]:
    """Run the operations in order."""
    return map(Runner(backend, limits).run, operations)


def play_in_child(
    open_backend: Callable[[], Backend],
    operations: Sequence[Operation],
    limits: Limits | None,
    limit_s: float = SEQUENCE_LIMIT_S,
) -> Iterator[Outcome]:
    """As ``play``, on a backend opened in a child process, which nothing that happens there can hurt.

    If the child ends, the operation it was at says how, and the rest is skipped.
    """

    def work() -> Iterator[bytes]:
        backend = open_backend()
        try:
            yield from map(msgspec.msgpack.Encoder().encode, play(backend, operations, limits))
        finally:
            backend.shutdown()

    decoder = msgspec.msgpack.Decoder(ANY_OUTCOME)
    done = 0
    try:
        for message in messages(work, limit_s):
            yield decoder.decode(message)
            done += 1
    except ChildEnded as ended:
        yield from after_the_end(str(ended), len(operations) - done)


def after_the_end(how: str, operations: int) -> Iterator[Outcome]:
    """The outcomes of the operation that ended the process, and of those that it could not make any more."""
    if operations:
        yield ProcessEnded(how)
    for _ in range(1, operations):
        yield Skipped("the process had ended")
