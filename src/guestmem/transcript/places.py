"""Where sequences are run, by name: "model", "kvm", "lab". One kernel each, one fresh process for every sequence.

A place opens backends through their public names and decides nothing; no place ever stands in for another. Sequences on
"kvm" run in child processes, because this machine's kernel does as it is told; the lab is a machine of its own.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from guestmem.backend import Backend
from guestmem.transcript import vocabulary as v
from guestmem.transcript.limits import Limits
from guestmem.transcript.play import play, play_in_child
from guestmem.transcript.runner import Outcome
from guestmem.transcript.world import process_for, profile_for

if TYPE_CHECKING:
    from guestmem.model.profiles import Machine

__all__ = ("PLACES", "Place", "place_named")

PLACES: Final = ("model", "kvm", "lab")


@dataclass(frozen=True, slots=True)
class Place:
    """A kernel to run sequences on. ``title`` says which one it is for a sequence."""

    name: str
    open: Callable[[v.Begin], Backend]
    title: Callable[[v.Begin], str]
    real: bool = False
    isolate: bool = False

    def run(self, begin: v.Begin, operations: Sequence[v.Operation], *, limited: bool | None = None) -> Iterator[Outcome]:
        """Outcomes in order; limited: hold it to ``Limits``, as a real kernel always is. UnknownHandle."""
        limits = Limits() if limited or self.real else None
        if self.isolate:
            yield from play_in_child(lambda: self.open(begin), operations, limits)
            return
        backend = self.open(begin)
        try:
            yield from play(backend, operations, limits)
        finally:
            backend.shutdown()


def place_named(name: str, profile: str | None = None, machine: Machine | None = None) -> Place:
    """The place of a name, ready to run: BackendUnavailable if this machine has none, ValueError for an unknown name.

    profile and machine are the model's: which kernel it is, where the recording does not say.
    """
    if name == "model":
        return Place(
            name,
            lambda begin: process_for(begin, profile_for(begin, profile), machine),
            lambda begin: profile_for(begin, profile).name,
        )
    if name == "kvm":
        return _kvm()
    if name == "lab":
        return _lab()
    raise ValueError(f"no backend {name!r}; there are {', '.join(PLACES)}")


def _kvm() -> Place:
    import guestmem

    def fresh(begin: v.Begin) -> Backend:
        from guestmem.kvm import KvmBackend

        return KvmBackend()

    with guestmem.open("kvm"):  # here and now, so that what is missing is said once and not by every child
        pass
    return Place("kvm", fresh, lambda begin: f"Linux {platform.release()}", real=True, isolate=True)


def _lab() -> Place:
    raise ValueError("the lab is not part of this version")
