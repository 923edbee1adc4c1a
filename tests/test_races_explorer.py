"""The explorer: the reduced graph against a naive enumeration of every schedule, and what steps say of themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestmem.races import MUTATIONS, NEXT, V6_12, Protocol, Scenario, scenario, scenarios
from guestmem.races.explore import Graph, TooManyWorlds, explore
from guestmem.races.step import AtomicStep, Program, end, go, program, step
from guestmem.races.world import Actor, World

PAIRS = [one.name for one in scenarios(2)]
TRIPLES = [one.name for one in scenarios(3)]
VARIABLES = ("seq", "attributes", "poisoned", "signals")  # whole numbers, for programs without a meaning
EMPTY = scenario("plain/signal+signal").programs()[1]


@dataclass(frozen=True)
class Enumerated:
    """What a naive enumeration knows: how soon each end is reached, and whether some world has no way to an end."""

    distance: dict[World, int]
    ends: frozenset[World]
    trapped: bool


def going_on(programs: Sequence[Program], world: World) -> Iterator[tuple[int, World]]:
    for me, actor in enumerate(world.actors):
        after = programs[me][actor.at].run(world, me) if actor.at else None
        if after is not None:
            yield me, after


def enumerate_all(programs: Sequence[Program], start: World) -> Enumerated:
    distance, layer, into = {start: 0}, [start], dict[World, list[World]]()
    ends = set()
    while layer:
        following = []
        for world in layer:
            afters = [after for _, after in going_on(programs, world)]
            if not afters:
                ends.add(world)
            for after in afters:
                into.setdefault(after, []).append(world)
                if after not in distance:
                    distance[after] = distance[world] + 1
                    following.append(after)
        layer = following
    ending, pending = set(ends), list(ends)
    while pending:
        fresh = set(into.get(pending.pop(), [])) - ending
        ending |= fresh
        pending += fresh
    return Enumerated(distance, frozenset(ends), len(ending) != len(distance))


def distances(graph: Graph) -> dict[World, int]:
    found, layer = {0: 0}, [0]
    while layer:
        fresh = []
        for index in layer:
            for _, target in graph.edges[index]:
                if target not in found:
                    found[target] = found[index] + 1
                    fresh.append(target)
        layer = fresh
    return {graph.worlds[index]: steps for index, steps in found.items()}


def assert_agrees(programs: Sequence[Program], start: World) -> None:
    """Same ends, each as soon, and the same answer to whether every way can end."""
    naive = enumerate_all(programs, start)
    for reduce in (False, True):
        graph = explore(programs, start, reduce=reduce)
        soonest = distances(graph)
        assert {graph.worlds[index] for index in graph.ends} == naive.ends
        assert {world: soonest[world] for world in naive.ends} == {world: naive.distance[world] for world in naive.ends}
        assert bool(graph.traps) == naive.trapped
        assert set(soonest) <= set(naive.distance)


# Programs without a meaning


def changed(world: World, field: str, value: int) -> World:
    fields: dict[str, Any] = {**world._asdict(), field: value}
    return World(**fields)


def add(field: str, then: str, name: str) -> AtomicStep:
    def run(world: World, me: int) -> World:
        after = changed(world, field, getattr(world, field) + 1)
        return end(after, me, "done") if then == "end" else go(after, me, then)

    return step(name, run, then, "", field)


def wait(field: str, value: int, then: str, name: str) -> AtomicStep:
    def run(world: World, me: int) -> World | None:
        if getattr(world, field) != value:
            return None
        return end(world, me, "done") if then == "end" else go(world, me, then)

    return step(name, run, then, field)


def put(field: str, value: int, then: str, name: str) -> AtomicStep:
    def run(world: World, me: int) -> World:
        after = changed(world, field, value)
        return end(after, me, "done") if then == "end" else go(after, me, then)

    return step(name, run, then, "", field)


def branch(field: str, value: int, taken: str, then: str, name: str) -> AtomicStep:
    def run(world: World, me: int) -> World:
        to = taken if getattr(world, field) == value else then
        return end(world, me, "done") if to == "end" else go(world, me, to)

    return step(name, run, f"{taken} {then}", field)


def begin(programs: Sequence[Program]) -> World:
    return EMPTY._replace(actors=tuple(Actor(next(iter(each))) for each in programs), tlbs=(None,) * len(programs))


def counting(field: str, steps: int) -> Program:
    names = [f"s{number}" for number in range(steps)]
    return program(*(add(field, then, name) for name, then in zip(names, [*names[1:], "end"], strict=True)))


@st.composite
def program_sets(draw: st.DrawFn) -> list[Program]:
    def any_step(number: int, count: int) -> AtomicStep:
        name, then = f"s{number}", f"s{number + 1}" if number + 1 < count else "end"
        field, value = draw(st.sampled_from(VARIABLES)), draw(st.integers(0, 1))
        kind = draw(st.sampled_from(("put", "wait", "branch", "branch")))
        if kind == "put":
            return put(field, value, then, name)
        if kind == "wait":
            return wait(field, value, then, name)
        return branch(field, value, f"s{draw(st.integers(0, count - 1))}", then, name)

    counts = draw(st.lists(st.integers(1, 4), min_size=2, max_size=3))
    return [program(*(any_step(number, count) for number in range(count))) for count in counts]


@pytest.mark.parametrize(("m", "n"), [(1, 1), (2, 3), (4, 4), (5, 1)])
def test_two_actors_that_share_nothing_have_one_order_that_counts(m: int, n: int) -> None:
    programs = [counting("seq", m), counting("signals", n)]
    whole, reduced = (explore(programs, begin(programs), reduce=reduce) for reduce in (False, True))

    assert (len(whole.worlds), whole.interleavings()) == ((m + 1) * (n + 1), comb(m + n, n))
    assert (len(reduced.worlds), reduced.interleavings()) == (m + n + 1, 1)


def test_two_actors_that_share_a_field_have_every_order() -> None:
    programs = [program(put("seq", 1, "end", "s0")), program(put("seq", 2, "end", "s0"))]
    graph = explore(programs, begin(programs))

    assert {graph.worlds[index].seq for index in graph.ends} == {1, 2}
    assert graph.interleavings() == 2


def test_locks_taken_crosswise_end_in_a_deadlock() -> None:
    def both(first: str, second: str) -> Program:
        return program(
            wait(first, 0, "s1", "s0"),
            put(first, 1, "s2", "s1"),
            wait(second, 0, "s3", "s2"),
            put(second, 1, "end", "s3"),
        )

    programs = [both("seq", "signals"), both("signals", "seq")]
    graph = explore(programs, begin(programs))

    assert any(all(actor.at == "s2" for actor in graph.worlds[index].actors) for index in graph.ends)


@pytest.mark.parametrize(("value", "ends"), [(1, True), (2, False)])
def test_going_round_is_a_trap_only_if_nobody_can_end_it(value: int, *, ends: bool) -> None:
    programs = [program(branch("seq", value, "end", "s0", "s0")), program(put("seq", 1, "end", "s0"))]
    graph = explore(programs, begin(programs))

    assert bool(graph.traps) is not ends
    assert bool(graph.ends) is ends


def test_more_worlds_than_the_limit_prove_nothing() -> None:
    programs = [counting("seq", 5), counting("seq", 5)]

    with pytest.raises(TooManyWorlds, match="more than 20 worlds"):
        explore(programs, begin(programs), limit=20)


@given(program_sets())
@settings(max_examples=300, deadline=None)
def test_any_programs_come_to_the_same_ends_reduced_or_not(programs: list[Program]) -> None:
    assert_agrees(programs, begin(programs))


# The actors


@pytest.mark.parametrize("protocol", [NEXT, V6_12], ids=["next", "v6.12"])
def test_every_pair_comes_to_the_same_ends_reduced_or_not(protocol: Protocol) -> None:
    for name in PAIRS:
        assert_agrees(*scenario(name).programs(protocol))


@pytest.mark.parametrize("name", MUTATIONS)
def test_without_a_rule_too(name: str) -> None:
    mutation = MUTATIONS[name]
    assert_agrees(*scenario(mutation.scenario).programs(mutation.protocol))


@pytest.mark.parametrize("name", TRIPLES[::12])
def test_triples_come_to_the_same_ends_reduced_or_not(name: str) -> None:
    assert_agrees(*scenario(name).programs())


def commute(programs: Sequence[Program], world: World, one: int, other: int) -> bool:
    """Whether neither step enables or disables the other, and both orders lead to one world."""
    steps = [programs[me][world.actors[me].at] for me in (one, other)]
    first, second = steps[0].run(world, one), steps[1].run(world, other)
    then = None if first is None else steps[1].run(first, other)
    back = None if second is None else steps[0].run(second, one)
    if first is None or second is None:
        return then is None and back is None
    return then is not None and then == back


@pytest.mark.parametrize("name", ["next", "v6.12", *MUTATIONS])
def test_steps_that_declare_themselves_independent_commute_everywhere(name: str) -> None:
    protocol, pairs = pairs_under(name)
    checked = 0
    for one in pairs:
        programs, start = one.programs(protocol)
        for world in explore(programs, start, reduce=False).worlds:
            a, b = (world.actors[me].at for me in (0, 1))
            if a and b and programs[0][a].independent_of(programs[1][b].touches, programs[1][b].writes):
                assert commute(programs, world, 0, 1), f"{one.name}: {a} and {b}"
                checked += 1
    assert checked > 200


@pytest.mark.parametrize("name", ["next", "v6.12", *MUTATIONS])
def test_steps_write_and_go_where_they_say(name: str) -> None:
    protocol, pairs = pairs_under(name)
    for one in pairs:
        programs, start = one.programs(protocol)
        for world in explore(programs, start, reduce=False).worlds:
            for me, after in going_on(programs, world):
                taken = programs[me][world.actors[me].at]
                written = {field for field in World._fields if getattr(world, field) != getattr(after, field)}
                assert written - {"actors"} <= taken.writes, f"{one.name}: {taken.name}"
                assert after.actors[me].at in taken.then, f"{one.name}: {taken.name}"


def pairs_under(name: str) -> tuple[Protocol, list[Scenario]]:
    """All pairs of the two protocols; without a rule, those of the machine that needs it."""
    if name in MUTATIONS:
        machine = scenario(MUTATIONS[name].scenario).machine
        return MUTATIONS[name].protocol, [one for one in scenarios(2) if one.machine is machine]
    return {"next": NEXT, "v6.12": V6_12}[name], list(scenarios(2))
