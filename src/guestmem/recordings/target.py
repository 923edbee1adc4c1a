"""Something to run sequences on: one kernel, a fresh process of it for every sequence."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from guestmem.backend import Backend
from guestmem.recordings.limits import Limits
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Outcome
from guestmem.recordings.play import after_the_end, play, play_in_child
from guestmem.recordings.vocabulary import Begin

__all__ = ("Outcomes", "Target")

Outcomes = Generator[Outcome, None, None]


@dataclass(frozen=True, slots=True)
class Target:
    """A kernel to run sequences on, each in a fresh process.

    ``title`` says which kernel it is for a sequence, ``profile`` which profile a model of it would have ("": unknown).
    ``close`` ends what all sequences share. ``ends``: the exceptions by which a backend says that its process is gone.
    ``far`` runs a whole sequence, held to limits or not, in a fresh process where the backend is, if that is not here.

    real: it does what it is asked to, so that ``Limits`` hold. isolate: it is the one this machine runs on, so that
    each sequence gets a child process.
    """

    name: str
    open: Callable[[Begin], Backend]
    title: Callable[[Begin], str]
    profile: Callable[[Begin], str]
    real: bool = False
    isolate: bool = False
    close: Callable[[], None] = lambda: None
    ends: tuple[type[Exception], ...] = ()
    far: Callable[[Sequence[Operation], bool], Sequence[Outcome]] | None = None

    def run(self, begin: Begin, operations: Sequence[Operation], *, limited: bool = False) -> Outcomes:
        """Outcomes in order; limited: hold a model to the limits of a real kernel too."""
        if self.far is not None:
            with contextlib.suppress(*self.ends):  # then once more, call by call, to see where it ends
                yield from self.far(operations, limited or self.real)
                return
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
            yield from after_the_end(str(gone), len(operations) - done)
        finally:
            backend.shutdown()
