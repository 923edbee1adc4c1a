"""Random sequences: how many a second the model answers, and the same ones on this machine's kernel in the same run."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.measure import say
from guestmem.errors import BackendUnavailable
from guestmem.fuzz.campaign import open_campaign
from guestmem.fuzz.draft import Scope
from guestmem.fuzz.generator import sequence
from guestmem.recordings.operation import Operation
from guestmem.recordings.target import Target
from guestmem.recordings.vocabulary import Begin
from guestmem.targets import pair_named, target_named

__all__ = ("random_sequences",)

COUNT = 300


@dataclass(frozen=True, slots=True)
class Rate:
    """Sequences and operations that a place answered in a second."""

    sequences: float
    operations: float


def random_sequences() -> None:
    """Both as the kernel that this machine runs; on the model alone, as 6.18, where there is none."""
    try:
        model, kvm = pair_named(["model", "kvm"])
    except (BackendUnavailable, ValueError) as reason:
        model, scope = target_named("model:v6.18"), Scope(creation_flags=((0, 3),))
        say("random sequences on the model", _figure(_rate(model, scope)), f"kernel skipped: {reason}")
        return
    scope = open_campaign(model, kvm).scope
    ours, theirs = _rate(model, scope), _rate(kvm, scope)
    say("random sequences on the model", _figure(ours), f"{ours.operations:,.0f} op/s")
    ratio = ours.operations / theirs.operations
    say(
        "the same through /dev/kvm, each in a child process",
        _figure(theirs),
        f"{theirs.operations:,.0f} op/s: the model is {ratio:.1f} times faster",
    )


def _figure(rate: Rate) -> str:
    return f"{rate.sequences:,.0f} seq/s"


def _rate(place: Target, scope: Scope) -> Rate:
    """Every sequence in a fresh process of the place; making them up is not measured."""
    chosen: list[list[Operation]] = [sequence(seed, scope) for seed in range(COUNT)]
    begin = time.perf_counter()
    operations = sum(1 for each in chosen for outcome in place.run(Begin(seq=""), each, limited=True))
    seconds = time.perf_counter() - begin
    return Rate(COUNT / seconds, operations / seconds)
