"""Exploring everything: all pairs and triples under the sound protocol, the mutations, and Linux 6.12."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from guestmem.races.check import Violation, violations
from guestmem.races.explore import TooManyWorlds, explore
from guestmem.races.protocol import MUTATIONS, NEXT, V6_12, Mutation, Protocol
from guestmem.races.scenarios import Scenario, scenario, scenarios
from guestmem.races.schedule import FailingSchedule, shortest_failure

__all__ = (
    "Exploration",
    "MutationResult",
    "RaceTotals",
    "Races",
    "Verdict",
    "explore_scenario",
    "prove_races",
    "totals",
    "try_mutation",
)

Verdict = Literal["holds", "refuted", "unknown"]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Exploration:
    """The result of one scenario. The counts are of the graph that was explored, 0 if the limit was reached."""

    scenario: Scenario
    verdict: Verdict
    worlds: int = 0
    steps: int = 0
    interleavings: int = 0
    ends: int = 0
    outcomes: tuple[tuple[str, ...], ...] = ()  # how the actors ended, each way once
    violations: tuple[Violation, ...] = ()
    schedule: FailingSchedule | None = None  # the shortest that fails, of a refuted one


@dataclass(frozen=True, slots=True)
class MutationResult:
    """The scenario of a mutation, with the rule and without it."""

    mutation: Mutation
    exploration: Exploration

    @property
    def found(self) -> bool:
        """Whether the explorer noticed that the rule is missing."""
        return self.exploration.verdict == "refuted"


@dataclass(frozen=True, slots=True)
class Races:
    """Every result. released: the scenarios that fail under the protocol of Linux 6.12 (``protocol.V6_12``)."""

    sound: tuple[Exploration, ...] = ()
    mutations: tuple[MutationResult, ...] = ()
    released: tuple[Exploration, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the sound protocol held everywhere and no missing rule went unnoticed. Unknown does not hold."""
        return all(one.verdict == "holds" for one in self.sound) and all(one.found for one in self.mutations)


def explore_scenario(
    one: Scenario, protocol: Protocol = NEXT, *, reduce: bool = True, limit: int = 1_000_000
) -> Exploration:
    """All interleavings of one scenario; if it fails, once more without reduction for the shortest schedule."""
    programs, start = one.programs(protocol)
    try:
        graph = explore(programs, start, reduce=reduce, limit=limit)
        ends = [graph.worlds[index] for index in graph.ends]
        found = {violation for end in ends for violation in violations(end)}
        refuted = bool(found or graph.traps)
        if refuted and reduce:
            return explore_scenario(one, protocol, reduce=False, limit=limit)
    except TooManyWorlds:
        return Exploration(one, "unknown")
    schedule = shortest_failure(graph) if refuted else None
    verdict: Verdict = "refuted" if refuted else "holds"
    counts = (len(graph.worlds), graph.steps, graph.interleavings(), len(ends))
    outcomes = sorted({tuple(actor.outcome or "waits" for actor in end.actors) for end in ends})
    return Exploration(one, verdict, *counts, tuple(outcomes), tuple(sorted(found)), schedule)


def try_mutation(name: str) -> MutationResult:
    """The scenario of a mutation without its rule; KeyError if there is no such mutation."""
    mutation = MUTATIONS[name]
    return MutationResult(mutation, explore_scenario(scenario(mutation.scenario), mutation.protocol, reduce=False))


def prove_races(actors: tuple[int, ...] = (2, 3), progress: Progress = lambda name: None) -> Races:
    """Everything. actors: how many race, 2 or 3 or both. progress gets each scenario's name before it is explored."""
    sound = []
    for one in (one for count in actors for one in scenarios(count)):
        progress(one.name)
        sound.append(explore_scenario(one))
    progress("mutations")
    mutations = tuple(try_mutation(name) for name in MUTATIONS)
    return Races(tuple(sound), mutations, tuple(_not_ending_well(V6_12, actors, progress)))


def _not_ending_well(protocol: Protocol, actors: Iterable[int], progress: Progress) -> Iterator[Exploration]:
    """The scenarios that fail. A triple is tried only if it is not a failing pair and a bystander."""
    failing: list[Scenario] = []
    for one in (one for count in actors for one in scenarios(count)):
        if not one.machine.setting.in_place and not any(one.contains(smaller) for smaller in failing):
            progress(f"Linux 6.12: {one.name}")
            explored = explore_scenario(one, protocol)
            if explored.verdict != "holds":
                failing.append(one)
                yield explored


@dataclass(frozen=True, slots=True)
class RaceTotals:
    """The sums over all scenarios of one machine with one number of actors, and the worst of their verdicts."""

    machine: str
    actors: int
    scenarios: int
    worlds: int
    steps: int
    interleavings: int
    ends: int
    verdict: Verdict


def totals(races: Races) -> list[RaceTotals]:
    """Per machine and number of actors, in the order explored."""

    def key(one: Exploration) -> tuple[int, str]:
        return len(one.scenario.names), one.scenario.machine.name

    return [_total(machine, actors, list(group)) for (actors, machine), group in groupby(races.sound, key)]


def _total(machine: str, actors: int, group: list[Exploration]) -> RaceTotals:
    verdicts = {one.verdict for one in group}
    worst: Verdict = "refuted" if "refuted" in verdicts else "unknown" if "unknown" in verdicts else "holds"
    counts = (
        sum(one.worlds for one in group),
        sum(one.steps for one in group),
        sum(one.interleavings for one in group),
        sum(one.ends for one in group),
    )
    return RaceTotals(machine, actors, len(group), *counts, worst)
