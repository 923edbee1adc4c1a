"""Races: the sound protocol holds in every interleaving, and each rule that is taken away is missed at once."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from math import comb
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from guestmem.model.fault import STEPS
from guestmem.races import (
    MACHINES,
    MUTATIONS,
    NEXT,
    V6_12,
    FailingSchedule,
    Races,
    explore_scenario,
    prove_races,
    scenario,
    scenarios,
    try_mutation,
)
from guestmem.races.check import violations
from guestmem.races.step import Program
from guestmem.races.world import FREE, FREED_MAPPED, HOST, USED_FREED, World, WorldLeaf
from guestmem.report.races_json import races_json
from guestmem.report.races_text import columns, races_text

DOCS = Path(__file__).parent.parent / "docs"


@pytest.fixture(scope="session")
def everything() -> Races:
    return prove_races()


# What is explored, and that it holds


def test_every_pair_and_triple_of_every_machine_is_explored(everything: Races) -> None:
    sizes = [len(machine.actors) for machine in MACHINES.values()]

    assert len(everything.sound) == sum(comb(n + 1, 2) + comb(n + 2, 3) for n in sizes)


def test_the_sound_protocol_holds_in_every_interleaving(everything: Races) -> None:
    assert [one.scenario.name for one in everything.sound if one.verdict != "holds"] == []
    assert everything.holds


def test_linux_6_12_fails_where_it_lacks_a_rule_and_nowhere_else(everything: Races) -> None:
    assert {one.scenario.name: one.schedule.kinds for one in everything.released if one.schedule} == {
        "fresh/pre-fault+delete": ("retry without end",),
        "mapped/pre-fault+delete": ("retry without end",),
        "mapped/punch+poison-tail": ("deadlock",),
        "mapped/punch-tail+poison-tail": ("deadlock",),
        "shared/pre-fault+delete": ("retry without end",),
        "plain/pre-fault+delete": ("retry without end",),
        "plain/pre-fault+move": ("retry without end",),
        "plain/pre-fault-there+move": ("retry without end",),
        "mapped/poison-tail+close+delete": ("retry without end",),
    }


def test_beyond_the_limit_the_verdict_is_unknown_and_that_is_no_success() -> None:
    unknown = explore_scenario(scenario("fresh/touch+punch"), limit=10)

    assert (unknown.verdict, unknown.worlds) == ("unknown", 0)
    assert not Races(sound=(unknown,)).holds


def test_a_rule_that_nobody_misses_is_no_success() -> None:
    found = try_mutation("recheck")
    unnoticed = type(found)(found.mutation, explore_scenario(scenario("fresh/touch+punch")))

    assert Races(mutations=(found,)).holds
    assert not Races(mutations=(found, unnoticed)).holds


# The mutations


PROTECTS_FROM = {
    "recheck": "freed while mapped",
    "sample-first": "private reachable as shared",
    "widen-attributes": "private reachable as shared",
    "widen-punch": "freed while mapped",
    "widen-punch-holes": "freed while mapped",
    "flush-before-free": "freed while mapped",
    "wait-for-readers": "used after free",
    "contained": "stale mapping",
    "unbind-dying": "used after free",
    "unbind-dying-locked": "retry without end",
    "poison-locks-file-first": "deadlock",
    "pre-fault-gives-up": "retry without end",
    "pre-fault-renews-root": "retry without end",
}


@pytest.mark.parametrize(("name", "kind"), PROTECTS_FROM.items())
def test_a_missing_rule_is_found_by_what_it_protects_from(name: str, kind: str) -> None:
    result = try_mutation(name)

    assert result.found
    assert result.exploration.schedule is not None
    assert result.exploration.schedule.kinds == (kind,)
    assert explore_scenario(result.exploration.scenario).verdict == "holds"


def test_the_table_above_has_every_mutation() -> None:
    assert set(PROTECTS_FROM) == set(MUTATIONS)


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_schedule_can_be_replayed_step_by_step_to_what_it_says(name: str) -> None:
    result = try_mutation(name)
    programs, world = result.exploration.scenario.programs(result.mutation.protocol)
    schedule = result.exploration.schedule
    assert schedule is not None
    seen = [world]
    for row in schedule.rows:
        assert world.actors[row.actor].at == row.step
        after = programs[row.actor][row.step].run(world, row.actor)
        assert after is not None
        world = after
        seen.append(world)

    if name.startswith("pre-fault"):
        assert seen.index(world) < len(schedule.rows), "the last steps go round"
    else:
        assert set(schedule.kinds) <= {violation.kind for violation in violations(world)} | world.harm


@pytest.mark.parametrize("name", [name for name in MUTATIONS if not name.startswith("pre-fault")])
def test_no_shorter_schedule_fails(name: str) -> None:
    result = try_mutation(name)
    programs, start = result.exploration.scenario.programs(result.mutation.protocol)
    schedule = result.exploration.schedule
    assert schedule is not None

    assert not any(wrong_within(programs, start, len(schedule.rows) - 1))
    assert any(wrong_within(programs, start, len(schedule.rows)))


def wrong_within(programs: Sequence[Program], start: World, steps: int) -> list[bool]:
    """Whether each world within so many steps is wrong: harm was done, or it is an end with a violation."""
    layer, seen, found = [start], {start}, []
    for _ in range(steps + 1):
        following = []
        for world in layer:
            going = [programs[me][actor.at].run(world, me) for me, actor in enumerate(world.actors) if actor.at]
            afters = [after for after in going if after is not None]
            found.append(bool(world.harm) or (not afters and bool(violations(world))))
            fresh = [after for after in afters if after not in seen]
            seen.update(fresh)
            following += fresh
        layer = following
    return found


def test_memory_failure_close_and_delete_need_all_three_to_fail() -> None:
    protocol = MUTATIONS["unbind-dying-locked"].protocol

    assert all(explore_scenario(one, protocol).verdict == "holds" for one in scenarios(2))


def test_the_attribute_may_be_compared_before_the_count_if_nobody_changes_attributes() -> None:
    protocol = MUTATIONS["sample-first"].protocol

    refuted = [one.names for one in scenarios(2) if explore_scenario(one, protocol).verdict == "refuted"]
    assert refuted
    assert all({"to-shared", "tail-to-shared", "to-private", "tail-to-private"} & set(names) for names in refuted)


# Pre-fault against slot deletion, as measured on kernels (docs/kernel-behaviour.md, Pre-fault)


@pytest.mark.parametrize("machine", ["fresh", "shared", "plain"])
def test_on_6_12_a_pre_fault_and_a_deletion_wait_for_each_other(machine: str) -> None:
    found = explore_scenario(scenario(f"{machine}/pre-fault+delete"), V6_12)

    assert found.schedule is not None
    assert found.schedule.kinds == ("retry without end",)
    assert who_goes_round(found.schedule) == {0}
    assert "look-up-slot" in steps_of(found.schedule, 0)
    assert steps_of(found.schedule, 1)[-1] == "synchronize", "the deletion has noted the readers and awaits them"


@pytest.mark.parametrize("machine", ["shared", "plain"])
def test_a_signal_ends_the_waiting_and_the_deletion_succeeds(machine: str) -> None:
    found = explore_scenario(scenario(f"{machine}/pre-fault+delete+signal"), V6_12)

    assert found.verdict == "holds"
    assert ("EINTR", "done", "sent") in found.outcomes
    assert {ways[1] for ways in found.outcomes} == {"done"}


@pytest.mark.parametrize("machine", ["fresh", "mapped", "shared", "plain"])
def test_on_7_2_the_call_ends_at_once_and_the_deletion_goes_through(machine: str) -> None:
    found = explore_scenario(scenario(f"{machine}/pre-fault+delete"), NEXT)

    assert found.verdict == "holds"
    assert {ways[1] for ways in found.outcomes} == {"done"}
    if machine != "mapped":  # where the leaf may be there already
        assert ("EAGAIN", "done") in found.outcomes


def test_on_6_12_a_default_vm_spins_after_a_move_until_a_signal_arrives() -> None:
    alone = explore_scenario(scenario("plain/pre-fault-there+move"), V6_12)
    signalled = explore_scenario(scenario("plain/pre-fault-there+move+signal"), V6_12)

    assert alone.schedule is not None
    assert who_goes_round(alone.schedule) == {0}
    assert ("done", "done") not in alone.outcomes, "it never succeeds after the move"
    assert signalled.verdict == "holds"
    assert explore_scenario(scenario("plain/pre-fault-there+move"), NEXT).verdict == "holds"


def who_goes_round(schedule: FailingSchedule) -> set[int]:
    count = re.search(r"the last (\d+) steps", schedule.violations[0].text)
    assert count is not None
    return {row.actor for row in schedule.rows[-int(count[1]) :]}


def steps_of(schedule: FailingSchedule, actor: int) -> list[str]:
    return [row.step for row in schedule.rows if row.actor == actor]


# What is asserted of an end


def ended(**changes: Any) -> World:
    """The world after nobody did anything: gfns 0 to 3 private, the first two mapped by a huge leaf."""
    _, world = scenario("mapped/touch+punch").programs()
    quiet = tuple(actor._replace(at="", outcome="done") for actor in world.actors)
    fields: dict[str, Any] = {**world._asdict(), "actors": quiet, **changes}
    return World(**fields)


def kinds(world: World) -> set[str]:
    return {violation.kind for violation in violations(world)}


def test_a_quiet_world_breaks_nothing() -> None:
    assert violations(ended()) == ()


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"leaves": (WorldLeaf(4, 0, 1, True),)}, "outside a binding"),
        ({"leaves": (WorldLeaf(0, 0, 0, False),)}, "private reachable as shared"),
        ({"attributes": 0}, "stale mapping"),
        ({"attributes": 0, "leaves": (WorldLeaf(0, 0, HOST + 1, False),)}, "stale mapping"),
        ({"cache": (None,) * 4}, "stale mapping"),
        ({"poisoned": 0b10}, "stale mapping"),
        ({"leaves": (), "tlbs": (WorldLeaf(0, 0, 3, True), None)}, "stale mapping"),
        ({"bindings": (-1,) * 4}, "outside a binding"),
        ({"leaves": (), "bindings": (7,) * 4}, "dangling binding"),
        ({"harm": frozenset({FREED_MAPPED})}, "freed while mapped"),
        ({"harm": frozenset({USED_FREED})}, "used after free"),
        ({"invalidation": (1, 0, 2)}, "retry without end"),
        ({"file": (False, 0, False)}, "leak"),
        ({"file": (True, 2, True)}, "leak"),
        ({"pins": (0,)}, "leak"),
        ({"slots_lock": 0}, "leak"),
        ({"mmu_lock": FREE._replace(readers=1)}, "leak"),
        ({"filemap": FREE._replace(writer=1)}, "leak"),
        ({"folio_locks": 1}, "leak"),
        ({"srcu": (1, 0)}, "leak"),
    ],
)
def test_each_assertion_sees_what_it_is_there_for(changes: dict[str, Any], kind: str) -> None:
    assert kinds(ended(**changes)) == {kind}


def test_somebody_who_cannot_go_on_is_a_deadlock() -> None:
    world = ended()
    waiting = (world.actors[0]._replace(at="recheck"), world.actors[1])

    assert kinds(world._replace(actors=waiting)) == {"deadlock"}


# As text, as JSON, as a page


def test_a_schedule_is_written_with_the_actors_side_by_side() -> None:
    assert columns(try_mutation("flush-before-free").exploration) == (
        "      vCPU touches gfn 0   punch hole [0, 2)\n"
        "      ------------------   -----------------------------\n"
        "   1  access (done)\n"
        "   2                       open-file\n"
        "   3                       lock-file\n"
        "   4                       invalidate-begin (gfn [0, 2))\n"
        "   5                       zap\n"
        "   6                       truncate\n"
        "  =>  freed while mapped: a page left the file while stage 2 or a TLB mapped it"
    )


def test_a_scenario_that_holds_has_no_schedule_to_write() -> None:
    assert columns(explore_scenario(scenario("mapped/touch+punch"))) == ""


def test_text_and_json_have_every_part(everything: Races) -> None:
    written, as_json = races_text(everything), json.loads(races_json(everything))

    assert all(f"  {name} " in written for name in MUTATIONS)
    assert all(one.scenario.name in written for one in everything.released)
    assert len(as_json["scenarios"]) == len(everything.sound)
    assert [one["name"] for one in as_json["mutations"]] == list(MUTATIONS)


def test_a_failure_of_the_sound_protocol_would_be_shown_with_its_schedule() -> None:
    failing = try_mutation("recheck").exploration

    assert columns(failing) in races_text(Races(sound=(failing,)))


def test_the_page_is_what_the_exploration_says(everything: Races) -> None:
    assert (DOCS / "races.md").read_text() == generator().page(everything), "make docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("races_page", DOCS / "races.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Against the model


def test_the_steps_of_a_fault_are_those_of_the_model_in_its_order() -> None:
    programs, _ = scenario("fresh/touch+punch").programs()
    of_the_model = [step.__name__.replace("_", "-") for step in STEPS]

    assert [name for name in programs[0] if name not in {"access", "get-file", "resume", "retry"}] == of_the_model


# -- attributes of files, Linux 7.4 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actors", "ends"),
    [
        ("touch+to-shared", {("done", "done"), ("memory-fault", "done")}),
        ("touch+close", {("done", "done"), ("memory-fault", "done")}),
        # In a quiet VM the access is before the deletion, or MMIO after it. Between the looks it is neither.
        ("touch+delete", {("done", "done"), ("mmio", "done"), ("memory-fault", "done")}),
        ("touch+punch", {("done", "done")}),  # attributes stay
        ("pre-fault+delete", {("done", "done"), ("ENOENT", "done"), ("EFAULT", "done"), ("EAGAIN", "done")}),
    ],
)
def test_a_change_between_two_looks_at_the_files_attribute_is_a_memory_fault(
    actors: str, ends: set[tuple[str, ...]]
) -> None:
    found = explore_scenario(scenario(f"in-place/{actors}"), NEXT)

    assert found.verdict == "holds"
    assert set(found.outcomes) == ends


def test_a_guests_fault_can_make_a_conversion_to_private_try_again() -> None:
    """The fault holds the page for a moment, and the conversion counts references."""
    found = explore_scenario(scenario("in-place/touch+to-shared+to-private"), NEXT)

    assert found.verdict == "holds"
    assert any(outcome[2] == "EAGAIN" for outcome in found.outcomes)
