"""Play a whole sequence on a backend, whatever it does: every operation gets an outcome.

Beside what the kernel answers, an operation may be *skipped* (a limit, or the process has ended), and a guest may leave
in a way that no access can cause. Both are outcomes that say so, never an exception and never a success.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from guestmem.backend import Backend
from guestmem.errors import NotVisible, UnexpectedExit
from guestmem.recordings import vocabulary as v
from guestmem.recordings.child import ChildEnded, messages
from guestmem.recordings.limits import Limits
from guestmem.recordings.runner import Outcome, Runner, UnknownHandle

__all__ = ("SEQUENCE_LIMIT_S", "Outcomes", "Place", "play", "play_in_child", "skipped")

SEQUENCE_LIMIT_S = 30.0  # for one operation; KVM_RUN has its own of 5 s for each access


Outcomes = Generator[Outcome, None, None]


def skipped(why: str) -> Outcome:
    """The outcome of an operation that was not issued."""
    return Outcome(observed={"skipped": why}, reason=why)


def play(backend: Backend, operations: Sequence[v.Operation], limits: Limits | None) -> Iterator[Outcome]:
    """Run the operations in order.

    An operation that needs what a skipped one would have made is run with what there is: no descriptor, no mapping. One
    that names what no operation makes has that as its outcome ("unknown").
    """
    runner = Runner(backend)
    for operation in operations:
        refused = limits.refuses(operation) if limits is not None else None
        if refused is not None:
            runner.not_made(operation)
            yield skipped(refused)
            continue
        try:
            yield runner.run(operation)
        except UnexpectedExit as error:
            yield Outcome(observed={"unexpected_exit": str(error)}, reason=str(error))
        except NotVisible as error:
            yield skipped(str(error))
        except UnknownHandle as error:
            yield Outcome(observed={"unknown": str(error)}, reason=str(error))


def play_in_child(
    open_backend: Callable[[], Backend],
    operations: Sequence[v.Operation],
    limits: Limits | None,
    limit_s: float = SEQUENCE_LIMIT_S,
) -> Iterator[Outcome]:
    """As ``play``, on a backend opened in a child process, which nothing that happens there can hurt.

    If the child ends, the operation it was at says how, and the rest is skipped.
    """

    def work() -> Iterator[bytes]:
        backend = open_backend()
        try:
            for outcome in play(backend, operations, limits):
                yield msgspec.msgpack.encode(outcome)
        finally:
            backend.shutdown()

    done = 0
    try:
        for message in messages(work, limit_s):
            yield msgspec.msgpack.decode(message, type=Outcome)
            done += 1
    except ChildEnded as ended:
        yield from _after_the_end(str(ended), len(operations) - done)


def _after_the_end(how: str, operations: int) -> Iterator[Outcome]:
    """The outcomes of the operation that ended the process, and of those that it could not make any more."""
    if operations:
        yield Outcome(observed={"process_ended": how}, reason=f"the process: {how}")
    for _ in range(1, operations):
        yield skipped("the process had ended")


@dataclass(frozen=True, slots=True)
class Place:
    """A kernel to run sequences on, each in a fresh process.

    ``title`` says which kernel it is for a sequence, ``profile`` which profile a model of it would have ("": unknown).
    ``close`` ends what all sequences share. ``ends``: the exceptions by which a backend says that its process is gone.

    real: it does as it is told, so that ``Limits`` hold. isolate: it is the one this machine runs on, so that each
    sequence gets a child process.
    """

    name: str
    open: Callable[[v.Begin], Backend]
    title: Callable[[v.Begin], str]
    profile: Callable[[v.Begin], str]
    real: bool = False
    isolate: bool = False
    close: Callable[[], None] = lambda: None
    ends: tuple[type[Exception], ...] = ()

    def run(self, begin: v.Begin, operations: Sequence[v.Operation], *, limited: bool = False) -> Outcomes:
        """Outcomes in order; limited: hold a model to the limits of a real kernel too."""
        limits = Limits() if limited or self.real else None
        if self.isolate:
            yield from play_in_child(lambda: self.open(begin), operations, limits)
            return
        backend = self.open(begin)
        done = 0
        try:
            for outcome in play(backend, operations, limits):
                yield outcome
                done += 1
        except self.ends as gone:
            yield from _after_the_end(str(gone), len(operations) - done)
        finally:
            backend.shutdown()
