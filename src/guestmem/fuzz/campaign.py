"""Run many seeds on two places, in chunks, each chunk in a child process of its own.

A chunk is small enough that what a kernel leaks or breaks goes with its child, and large enough that forking costs
nothing. A child that crashes or hangs names the seed it was at, which then counts as a difference of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec

from guestmem.backend import Backend
from guestmem.fuzz.draft import Scope
from guestmem.fuzz.generator import sequence
from guestmem.fuzz.shrink import smallest
from guestmem.model.profiles import NEWEST
from guestmem.recordings.child import ChildEnded, messages
from guestmem.recordings.diff import Difference, Group, Pair, compare_targets, grouped
from guestmem.recordings.operation import Operation
from guestmem.recordings.target import Target
from guestmem.recordings.vocabulary import Begin
from guestmem.recordings.writer import writing
from guestmem.targets import machine_behind
from guestmem.uapi import KVM_CAP_GUEST_MEMFD, KVM_CAP_GUEST_MEMFD_FLAGS, KVM_X86_SW_PROTECTED_VM

__all__ = ("Campaign", "Figures", "Seed", "causes", "compare_seed", "open_campaign", "run_seeds", "write_causes")

_CHUNK = 100
_SEQUENCE_LIMIT_S = 60.0  # it may make several accesses that each take KVM_RUN's own limit


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
    """Two places, and what their kernels have, so that sequences go there."""

    a: Target
    b: Target
    scope: Scope


@dataclass(slots=True)
class Figures:
    """What a run came to; operations counts guest touches one by one, up to the first difference of a sequence."""

    sequences: int = 0
    operations: int = 0
    skipped: int = 0
    known: Counter[str] = field(default_factory=Counter)
    differ: list[int] = field(default_factory=list)  # seeds
    ended: dict[int, str] = field(default_factory=dict)  # seeds whose process did not survive

    def add(self, seed: Seed) -> None:
        """Count one seed."""
        self.sequences += 1
        self.operations += seed.operations
        self.skipped += seed.skipped
        self.known.update(seed.known)
        if seed.differs:
            self.differ.append(seed.seed)
        if seed.ended:
            self.ended[seed.seed] = seed.ended


def open_campaign(a: Target, b: Target) -> Campaign:
    """Ask both places what they have; sequences go where at least one of them has something."""
    scopes = [_scope_of(place) for place in (a, b)]
    types = sorted({type for scope in scopes for type in scope.vm_types})
    return Campaign(
        a,
        b,
        Scope(
            vm_types=tuple(types),
            attributes=any(scope.attributes for scope in scopes),
            two_dimensional_paging=any(scope.two_dimensional_paging for scope in scopes),
            gpa_bits=min(scope.gpa_bits for scope in scopes),
            creation_flags=_united(scopes),
        ),
    )


def _united(scopes: Iterable[Scope]) -> tuple[tuple[int, int], ...]:
    """Creation flags by VM type: those that at least one of the kernels takes."""
    flags: dict[int, int] = {}
    for type, taken in (pair for scope in scopes for pair in scope.creation_flags):
        flags[type] = flags.get(type, 0) | taken
    return tuple(sorted(flags.items()))


def _scope_of(place: Target) -> Scope:
    backend = place.open(Begin(seq=""))
    try:
        machine = machine_behind(backend, NEWEST)
        flags = _creation_flags(backend, machine.vm_types)
    finally:
        backend.shutdown()
    private = KVM_X86_SW_PROTECTED_VM in machine.vm_types
    return Scope(machine.vm_types, private, machine.two_dimensional_paging, machine.gpa_bits, flags)


def _creation_flags(backend: Backend, types: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """The VM types that can bind a guest_memfd, each with the creation flags that it takes."""
    kvm = backend.open_kvm()
    vms = {type: backend.create_vm(kvm, type) for type in types}
    return tuple(
        (type, backend.check_extension(vm, KVM_CAP_GUEST_MEMFD_FLAGS))
        for type, vm in vms.items()
        if backend.check_extension(vm, KVM_CAP_GUEST_MEMFD)
    )


def _begin_of(campaign: Campaign, seed: int) -> Begin:
    nothing = Begin(seq="")
    profile = campaign.a.profile(nothing) or campaign.b.profile(nothing)
    title = f"fuzz on {campaign.a.name} and {campaign.b.name}"
    return Begin(
        seq=f"fuzz-{seed}",
        kind="fuzz",
        profile=profile,
        seed=seed,
        title=title,
        two_dimensional_paging=campaign.scope.two_dimensional_paging,
    )


def compare_seed(campaign: Campaign, seed: int) -> Pair:
    """Run one seed on both, each place isolated as it wants to be."""
    return compare_targets(_begin_of(campaign, seed), sequence(seed, campaign.scope), campaign.a, campaign.b)


def run_seeds(campaign: Campaign, first: int, count: int) -> Iterator[Seed]:
    """What became of each seed from ``first`` on, in order."""
    if not all(_can_fork(place) for place in (campaign.a, campaign.b)):
        yield from (_became(campaign, seed) for seed in range(first, first + count))
        return
    inside = replace(campaign, a=_here(campaign.a), b=_here(campaign.b))
    seed, end = first, first + count
    while seed < end:
        chunk = range(seed, min(seed + _CHUNK, end))
        try:
            for message in messages(partial(_chunk, inside, chunk), _SEQUENCE_LIMIT_S):
                yield msgspec.msgpack.decode(message, type=Seed)
                seed += 1
        except ChildEnded as ended:
            yield Seed(seed, differs=True, ended=str(ended))
            seed += 1


def causes(campaign: Campaign, seeds: Iterable[int], shrink_s: float) -> list[Group]:
    """The differences of seeds by cause, the smallest of each shrunk for shrink_s seconds; 0: as it is."""
    pairs = (compare_seed(campaign, seed) for seed in seeds)
    groups = grouped(pair.new for pair in pairs if pair.new is not None)
    if shrink_s:
        for group in groups:
            group.smallest = _shrunk(campaign, group.smallest, shrink_s)
    return groups


def write_causes(directory: Path, groups: list[Group]) -> list[Path]:
    """Write each smallest difference as a recording into a directory; OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for group in groups:
        path = directory / f"{group.smallest.begin.seq}-{group.cause.op}.jsonl"
        with writing(path) as write:
            write(group.smallest.begin, group.smallest.operations)
        paths.append(path)
    return paths


def _shrunk(campaign: Campaign, found: Difference, shrink_s: float) -> Difference:
    """A smaller difference of the same cause."""
    best = found

    def differs(operations: Sequence[Operation]) -> bool:
        nonlocal best
        new = compare_targets(found.begin, operations, campaign.a, campaign.b).new
        if new is None or new.cause != found.cause:
            return False
        if len(new.operations) <= len(best.operations):
            best = new
        return True

    smallest(found.operations, differs, shrink_s)
    return best


def _can_fork(place: Target) -> bool:
    """A machine of its own is talked to by one process, and needs no child to be safe from."""
    return place.isolate or not place.real


def _here(place: Target) -> Target:
    """The place without a child of its own: the chunk is in one already."""
    return replace(place, isolate=False)


def _chunk(campaign: Campaign, seeds: range) -> Iterator[bytes]:
    for seed in seeds:
        yield msgspec.msgpack.encode(_became(campaign, seed))


def _became(campaign: Campaign, seed: int) -> Seed:
    pair = compare_seed(campaign, seed)
    known = tuple(each.cause.divergence for each in pair.known)
    return Seed(seed, pair.operations, pair.skipped, known, pair.new is not None)
