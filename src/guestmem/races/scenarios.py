"""Where races start: a few small machines, and the actors that can race on each.

Every machine has pages of two per huge page and one slot of four pages, so that a request can take a whole huge page,
half of one, or leave the other alone. All pairs and triples of a machine's actors are explored, those with the same
actor twice among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from types import MappingProxyType
from typing import Protocol as Interface

from guestmem.races.attributes import Convert, ConvertFile
from guestmem.races.gmem import CloseFile, MemoryFailure, PunchHole
from guestmem.races.memory import allocate, install
from guestmem.races.protocol import NEXT, Protocol
from guestmem.races.slots import DeleteSlot, MoveSlot
from guestmem.races.step import Program
from guestmem.races.vcpu import GuestAccess, PreFaultPage, Signal
from guestmem.races.world import FREE, NOTHING, Actor, Setting, World, WorldLeaf, WorldSlot

__all__ = ("MACHINES", "ActorKind", "SmallMachine", "Scenario", "scenario", "scenarios")

ALL_PRIVATE = 0b1111


class ActorKind(Interface):
    """What can race: a label for its column, and its program."""

    @property
    def label(self) -> str:
        """The head of its column."""

    def program(self, setting: Setting) -> Program:
        """Its steps."""


@dataclass(frozen=True, slots=True)
class SmallMachine:
    """One state to start from. mapped: the first huge range is in the file and mapped at gfn 0."""

    name: str
    at_start: str
    setting: Setting
    slot: WorldSlot
    actors: Mapping[str, ActorKind]
    attributes: int = 0
    mapped: bool = False

    def start(self, setting: Setting, programs: list[Program]) -> World:
        """The world before anybody has gone on."""
        bound = range(self.slot.pgoff, self.slot.pgoff + self.slot.npages) if self.slot.file else ()
        world = World(
            actors=tuple(Actor(next(iter(program))) for program in programs),
            seq=0,
            invalidation=(0, 0, 0),
            leaves=(),
            tlbs=(None,) * len(programs),
            root_generation=0,
            mmu_lock=FREE,
            slots_lock=NOTHING,
            filemap=FREE,
            folio_locks=0,
            srcu=(0, 0),
            attributes=self.attributes,
            mixed=0,
            slots=(self.slot,),
            bindings=tuple(self.slot.id if index in bound else NOTHING for index in range(setting.npages)),
            cache=(None,) * setting.npages,
            pins=(),
            poisoned=0,
            file=(True, 1, True),
            signals=0,
            harm=frozenset(),
            in_place=setting.in_place,
        )
        return _with_folio(setting, world) if self.mapped else world


def _with_folio(setting: Setting, world: World) -> World:
    for index in range(setting.block):
        world = allocate(setting, world, index)
    for index, entry in enumerate(world.cache):
        if entry is not None and world.leaf_at(index) is None:
            world = install(world, WorldLeaf(index, entry[1], entry[0], private=True))
    return world


@dataclass(frozen=True, slots=True)
class Scenario:
    """A machine and the actors that race on it."""

    machine: SmallMachine
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """machine/actor+actor."""
        return f"{self.machine.name}/{'+'.join(self.names)}"

    def contains(self, smaller: Scenario) -> bool:
        """Whether the other has the same machine and some of these actors."""
        return self.machine is smaller.machine and not Counter(smaller.names) - Counter(self.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """The heads of the columns."""
        return tuple(self.machine.actors[name].label for name in self.names)

    def programs(self, protocol: Protocol = NEXT) -> tuple[list[Program], World]:
        """What the explorer needs: a program per actor, and the start."""
        setting = replace(self.machine.setting, protocol=protocol, huge_folios=protocol.huge_folios)
        programs = [self.machine.actors[name].program(setting) for name in self.names]
        return programs, self.machine.start(setting, programs)


def _machines() -> Iterator[SmallMachine]:
    slot = WorldSlot(id=0, base=0, npages=4, pgoff=0, hva=0, file=True, state="valid")
    vcpus: dict[str, ActorKind] = {"touch": GuestAccess(0), "pre-fault": PreFaultPage(0)}
    file: dict[str, ActorKind] = {
        "punch": PunchHole(0, 2),
        "punch-tail": PunchHole(1, 2),
        "poison-tail": MemoryFailure(1),
        "close": CloseFile(),
    }
    to_shared: dict[str, ActorKind] = {"to-shared": Convert(0, 2, False), "tail-to-shared": Convert(1, 2, False)}
    to_private: dict[str, ActorKind] = {"to-private": Convert(0, 2, True), "tail-to-private": Convert(1, 2, True)}
    delete: dict[str, ActorKind] = {"delete": DeleteSlot()}
    private = {**vcpus, **file, **to_shared, **delete}
    yield SmallMachine("fresh", "private, nothing allocated", Setting(), slot, private, ALL_PRIVATE)
    yield SmallMachine("mapped", "private, a huge folio mapped", Setting(), slot, private, ALL_PRIVATE, mapped=True)
    signal: dict[str, ActorKind] = {"signal": Signal(0)}
    shared = {**vcpus, **to_private, **delete, **signal}
    yield SmallMachine("shared", "shared, nothing mapped", Setting(), slot, shared)
    offset = slot._replace(pgoff=1, npages=3)
    few: dict[str, ActorKind] = {"touch": GuestAccess(0), "punch-tail": PunchHole(1, 2), **delete}
    yield SmallMachine("offset", "private, bound from page 1 of the file", Setting(), offset, few, ALL_PRIVATE)
    # Linux 7.4: whether an access is private is asked of slot and file, twice and without a lock.
    in_place: dict[str, ActorKind] = {
        **vcpus,
        "punch": file["punch"],
        "close": file["close"],
        "to-shared": ConvertFile(0, 2, False),
        "to-private": ConvertFile(0, 2, True),
        **delete,
    }
    queued = Setting(in_place=True)
    yield SmallMachine("in-place", "attributes of the file, all private", queued, slot, in_place, ALL_PRIVATE)
    plain = slot._replace(pgoff=NOTHING, file=False)
    # The slot moves to gfn 4, where one pre-fault waits for it.
    moves: dict[str, ActorKind] = {"pre-fault-there": PreFaultPage(4), **delete, "move": MoveSlot(4), **signal}
    default = Setting(private_mem=False)
    yield SmallMachine("plain", "a default VM, no file", default, plain, {**vcpus, **moves})


MACHINES: Mapping[str, SmallMachine] = MappingProxyType({machine.name: machine for machine in _machines()})


def scenario(name: str) -> Scenario:
    """The scenario of this name; KeyError without it."""
    machine, _, actors = name.partition("/")
    names = tuple(actors.split("+"))
    found = Scenario(MACHINES[machine], names)
    missing = [actor for actor in names if actor not in found.machine.actors]
    if missing:
        raise KeyError(missing[0])
    return found


def scenarios(actors: int) -> Iterator[Scenario]:
    """All with so many actors."""
    for machine in MACHINES.values():
        for names in combinations_with_replacement(machine.actors, actors):
            yield Scenario(machine, names)
