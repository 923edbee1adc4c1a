"""A step: what an actor does at once, without anybody else in between; and the programs that steps make up.

``run`` takes the world and the actor's number, and gives the world after it, or None while the step must wait. Steps
declare which fields of ``World`` they read and write (the actor's own state aside): what two actors declare decides
whether the order of their steps can matter, so a forgotten field would hide schedules; tests compare the declarations
with what steps do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from guestmem.races.world import Actor, World

__all__ = ("Program", "Run", "AtomicStep", "end", "go", "program", "step")

Run = Callable[[World, int], World | None]


@dataclass(frozen=True, slots=True)
class AtomicStep:
    """One atomic step. then: the steps that may come next ("" ends the actor).

    touches and writes hold field names; two steps are independent if neither writes what the other touches. A field
    that is only added to, or taken from, as such steps can do in any order (a reader enters, a pin goes), is written
    as itself but touched under another name, "+field", which readers do not touch and writers do.
    """

    name: str
    run: Run
    touches: frozenset[str]
    writes: frozenset[str]
    then: tuple[str, ...]

    def independent_of(self, touched: frozenset[str], written: frozenset[str]) -> bool:
        """Whether no order with steps that touch and write these fields can matter."""
        return not (self.writes & touched or self.touches & written)


Program = Mapping[str, AtomicStep]  # in the kernel's order; the actor starts at the first step


def step(name: str, run: Run, then: str, reads: str = "", writes: str = "") -> AtomicStep:
    """A step from words in strings. A written "+field" is only added to; the follower "end" ends the actor."""
    followers = tuple("" if word == "end" else word for word in then.split())
    added = {word for word in writes.split() if word.startswith("+")}
    whole = set(writes.split()) - added
    touches = {*reads.split(), *added, *whole, *("+" + field for field in whole)}
    written = {*whole, *("+" + field for field in whole), *(field.removeprefix("+") for field in added)}
    return AtomicStep(name, run, frozenset(touches), frozenset(written), followers)


def program(*steps: AtomicStep) -> Program:
    """The program of an actor."""
    return {one.name: one for one in steps}


def go(world: World, me: int, at: str, **changes: Any) -> World:
    """The actor goes on at another step, having learned something."""
    actors = list(world.actors)
    actors[me] = actors[me]._replace(at=at, **changes)
    return world._replace(actors=tuple(actors))


def end(world: World, me: int, outcome: str) -> World:
    """The actor has ended; what it knew no longer makes states different."""
    actors = list(world.actors)
    actors[me] = Actor("", outcome)
    return world._replace(actors=tuple(actors))
