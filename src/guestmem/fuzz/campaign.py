"""Run many seeds on two places, in chunks, each chunk in a child process of its own.

A chunk is small enough that what a kernel leaks or breaks goes with its child, and large enough that forking costs
nothing. A child that crashes or hangs names the seed it was at, which then counts as a difference of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import msgspec

from guestmem.fuzz.generator import sequence
from guestmem.fuzz.state import Scope
from guestmem.transcript.child import ChildEnded, messages
from guestmem.transcript.difference import Pair, first_difference
from guestmem.transcript.places import Place
from guestmem.transcript.vocabulary import Begin

__all__ = ("Campaign", "Seed", "begin_of", "compare_seed", "run_seeds")

CHUNK = 100
SEQUENCE_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Seed:
    """What became of one seed. ``ended`` says how its process ended where it should not have."""

    seed: int
    operations: int = 0
    skipped: int = 0
    known: tuple[str, ...] = ()
    differs: bool = False
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Campaign:
    """Two places and where their sequences go; after_each is called with the backend of a modelled place."""

    a: Place
    b: Place
    scope: Scope
    profile: str = ""
    begin: Begin = field(default_factory=lambda: Begin(seq=""))


def begin_of(campaign: Campaign, seed: int) -> Begin:
    """The begin line of a seed's sequence."""
    title = f"fuzz on {campaign.a.name} and {campaign.b.name}"
    begin = msgspec.structs.replace(campaign.begin, seq=f"fuzz-{seed}", seed=seed, kind="fuzz", title=title)
    return msgspec.structs.replace(begin, profile=campaign.profile)


def compare_seed(campaign: Campaign, seed: int) -> Pair:
    """Run one seed on both, each place isolated as it wants to be."""
    begin, operations = begin_of(campaign, seed), sequence(seed, campaign.scope)
    a, b = (place.run(begin, operations, limited=True) for place in (campaign.a, campaign.b))
    return first_difference(begin, operations, a, b)


def run_seeds(campaign: Campaign, first: int, count: int, tick: Callable[[], None] = lambda: None) -> Iterator[Seed]:
    """What became of each seed from ``first`` on, in order."""
    inside = replace(campaign, a=_here(campaign.a), b=_here(campaign.b))
    seed, end = first, first + count
    while seed < end:
        chunk = range(seed, min(seed + CHUNK, end))
        try:
            for message in messages(lambda chunk=chunk: _chunk(inside, chunk), SEQUENCE_LIMIT_S):  # type: ignore[misc]
                yield msgspec.msgpack.decode(message, type=Seed)
                seed += 1
        except ChildEnded as ended:
            yield Seed(seed, differs=True, ended=str(ended))
            seed += 1
        tick()


def _here(place: Place) -> Place:
    """The place without a child of its own: the chunk is in one already."""
    return replace(place, isolate=False)


def _chunk(campaign: Campaign, seeds: range) -> Iterator[bytes]:
    for seed in seeds:
        pair = compare_seed(campaign, seed)
        known = tuple(each.cause.divergence for each in pair.known)
        yield msgspec.msgpack.encode(Seed(seed, pair.operations, pair.skipped, known, pair.new is not None))
