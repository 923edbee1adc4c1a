"""Every interleaving of a few actors, as the graph of the worlds that they reach.

With reduction, only a persistent set of actors goes on from each world: a set such that nothing the others may still do
can matter to what its members do next (declared fields, closed over the steps that may follow). This keeps every
end state and deadlock, one schedule of every length that reaches it, and also whether some world has no way to an end:
any way to that world that the reduction delays stays possible until its first step is taken, and every way to an end
takes it. Without reduction the graph is the whole product, and the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guestmem.races.step import AtomicStep, Program
from guestmem.races.world import World

__all__ = ("Graph", "TooManyWorlds", "explore")


class TooManyWorlds(Exception):
    """The limit of worlds was reached before all were seen: nothing is proved."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Worlds in the order found (0 is the start), and for each the actors that went on and the world each led to."""

    worlds: tuple[World, ...]
    edges: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def steps(self) -> int:
        """Edges in all."""
        return sum(map(len, self.edges))

    @property
    def ends(self) -> list[int]:
        """Worlds from which nobody goes on."""
        return [index for index, edges in enumerate(self.edges) if not edges]

    @property
    def traps(self) -> set[int]:
        """Worlds from which no end can be reached: somebody goes round for ever."""
        into: list[list[int]] = [[] for _ in self.worlds]
        for index, edges in enumerate(self.edges):
            for _, target in edges:
                into[target].append(index)
        pending = self.ends
        seen = set(pending)
        while pending:
            fresh = [index for index in into[pending.pop()] if index not in seen]
            seen.update(fresh)
            pending += fresh
        return set(range(len(self.worlds))) - seen

    def interleavings(self) -> int:
        """Ways from the start to an end; a step that closes a circle (a retry that changes nothing) is not taken."""
        ways: dict[int, int] = {}
        open_worlds: set[int] = set()
        stack = [0]
        while stack:
            index = stack[-1]
            if index in ways:
                stack.pop()
            elif index in open_worlds:
                ways[index] = sum(ways.get(target, 0) for _, target in self.edges[index]) or 1
                open_worlds.discard(stack.pop())
            else:
                open_worlds.add(index)
                stack += [to for _, to in self.edges[index] if to not in ways and to not in open_worlds]
        return ways[0]


def explore(
    programs: Sequence[Program],
    start: World,
    *,
    reduce: bool = True,
    limit: int = 1_000_000,
    progress: Callable[[int], None] | None = None,
) -> Graph:
    """The graph from start. progress gets the number of worlds now and then; TooManyWorlds past limit."""
    choose = _Persistent(programs) if reduce else _Everybody(programs)
    number = {start: 0}
    worlds, edges = [start], []
    for world in worlds:  # grows while it is read
        following = []
        for me, after in choose(world):
            if after not in number:
                number[after] = len(worlds)
                worlds.append(after)
            following.append((me, number[after]))
        edges.append(tuple(following))
        if len(worlds) > limit:
            raise TooManyWorlds(f"more than {limit} worlds")
        if progress is not None and len(edges) % 5000 == 0:
            progress(len(edges))
    return Graph(tuple(worlds), tuple(edges))


class _Everybody:
    """Each actor that can go on does."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self.programs = programs

    def __call__(self, world: World) -> list[tuple[int, World]]:
        return self.of(world, range(len(self.programs)))

    def of(self, world: World, members: Sequence[int]) -> list[tuple[int, World]]:
        found = []
        for me in members:
            at = world.actors[me].at
            after = self.programs[me][at].run(world, me) if at else None
            if after is not None:
                found.append((me, after))
        return found


class _Persistent(_Everybody):
    """The members of a smallest persistent set that can go on."""

    def __init__(self, programs: Sequence[Program]) -> None:
        super().__init__(programs)
        self.later = [{at: _from(program, at) for at in program} for program in programs]
        self.known: dict[tuple[str, ...], list[list[int]]] = {}

    def __call__(self, world: World) -> list[tuple[int, World]]:
        where = tuple(actor.at for actor in world.actors)
        if where not in self.known:
            self.known[where] = self._sets(where)
        for members in self.known[where]:
            found = self.of(world, members)
            if found:
                return found
        return []

    def _sets(self, where: tuple[str, ...]) -> list[list[int]]:
        """Persistent sets by size; whether one has a member that can go on depends on the world."""
        alive = [me for me, at in enumerate(where) if at]
        sets = []
        for seed in alive:
            members = [seed]
            for me in members:  # grows while it is read
                members += [him for him in alive if him not in members and self._matters(where, me, him)]
            sets.append(sorted(members))
        return sorted(sets, key=len)

    def _matters(self, where: tuple[str, ...], me: int, him: int) -> bool:
        touched, written = self.later[him][where[him]]
        return not self.programs[me][where[me]].independent_of(touched, written)


def _from(program: Program, at: str) -> tuple[frozenset[str], frozenset[str]]:
    """The fields that the steps from this one on may touch, and may write."""
    pending, seen = [at], {at}
    touched: frozenset[str] = frozenset()
    written: frozenset[str] = frozenset()
    while pending:
        step: AtomicStep = program[pending.pop()]
        touched, written = touched | step.touches, written | step.writes
        fresh = [then for then in step.then if then and then not in seen]
        seen.update(fresh)
        pending += fresh
    return touched, written
