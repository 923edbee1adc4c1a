"""Races for readers: a failing schedule with the actors side by side, the totals of what was explored, and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from guestmem.races.proof import Exploration, MutationResult, Races, Verdict
from guestmem.races.schedule import Row

__all__ = ("Totals", "columns", "mutation_text", "text", "to_dict", "totals")


@dataclass(frozen=True, slots=True)
class Totals:
    """The sums over all scenarios of one machine with one number of actors, and the worst of their verdicts."""

    machine: str
    actors: int
    scenarios: int
    worlds: int
    steps: int
    interleavings: int
    ends: int
    verdict: Verdict


def totals(races: Races) -> list[Totals]:
    """Per machine and number of actors, in the order explored."""

    def key(one: Exploration) -> tuple[int, str]:
        return len(one.scenario.names), one.scenario.machine.name

    return [_total(machine, actors, list(group)) for (actors, machine), group in groupby(races.sound, key)]


def _total(machine: str, actors: int, group: list[Exploration]) -> Totals:
    verdicts = {one.verdict for one in group}
    worst: Verdict = "refuted" if "refuted" in verdicts else "unknown" if "unknown" in verdicts else "holds"
    counts = (
        sum(one.worlds for one in group),
        sum(one.steps for one in group),
        sum(one.interleavings for one in group),
        sum(one.ends for one in group),
    )
    return Totals(machine, actors, len(group), *counts, worst)


def columns(one: Exploration) -> str:
    """The shortest failing schedule of a refuted scenario: a column per actor, a row per step. "" of any other."""
    schedule = one.schedule
    if schedule is None:
        return ""
    labels = one.scenario.labels
    cells = [(row.actor, _cell(row)) for row in schedule.rows]
    widths = [max([len(label), *(len(cell) for me, cell in cells if me == n)]) for n, label in enumerate(labels)]
    lines = [["", *labels], ["", *("-" * width for width in widths)]]
    for number, (me, cell) in enumerate(cells, 1):
        lines.append([str(number), *(cell if me == n else "" for n in range(len(labels)))])
    table = [f"{line[0]:>4}  " + "   ".join(map(str.ljust, line[1:], widths)) for line in lines]
    reasons = [f"  =>  {violation.kind}: {violation.text}" for violation in schedule.violations]
    return "\n".join(line.rstrip() for line in [*table, *reasons])


def _cell(row: Row) -> str:
    return f"{row.step} ({row.remark})" if row.remark else row.step


def mutation_text(result: MutationResult) -> str:
    """One mutation: the rule, its story, and the schedule that fails without it."""
    one = result.exploration
    head = f"without {result.mutation.name}, {one.scenario.name}: {_counts(one)}: {one.verdict}"
    return f"{head}\n{result.mutation.story}\n\n{columns(one)}".rstrip()


def _counts(one: Exploration) -> str:
    return f"{one.worlds} states, {one.interleavings} interleavings"


def text(races: Races) -> str:
    """Everything, as lines for a terminal."""
    lines = [f"{'machine':<8} {'actors':>6} {'scenarios':>9} {'states':>8} {'steps':>8} {'interleavings':>20}  verdict"]
    for row in totals(races):
        numbers = f"{row.actors:>6} {row.scenarios:>9} {row.worlds:>8} {row.steps:>8} {_short(row.interleavings):>20}"
        lines.append(f"{row.machine:<8} {numbers}  {row.verdict}")
    for one in races.sound:
        if one.verdict != "holds":
            lines += ["", f"{one.scenario.name}: {one.verdict}", columns(one)]
    lines += ["", "A rule taken away, and what the explorer finds:"]
    for result in races.mutations:
        lines.append(
            f"  {result.mutation.name:<24} {result.exploration.scenario.name:<34} {_found(result.exploration)}"
        )
    lines += ["", "Linux 6.12 does not end these well:"]
    lines += [f"  {one.scenario.name:<34} {_found(one)}" for one in races.released]
    return "\n".join(lines)


def _found(one: Exploration) -> str:
    if one.schedule is None:
        return one.verdict
    return f"{', '.join(one.schedule.kinds)} after {len(one.schedule.rows)} steps"


def _short(number: int) -> str:
    return str(number) if number < 10**15 else f"{number:.3e}"


def to_dict(races: Races) -> dict[str, Any]:
    """Everything, as JSON values."""
    return {
        "holds": races.holds,
        "scenarios": [_to_dict(one) for one in races.sound],
        "mutations": [
            {"name": one.mutation.name, "story": one.mutation.story, "found": one.found, **_to_dict(one.exploration)}
            for one in races.mutations
        ],
        "linux-6.12": [_to_dict(one) for one in races.released],
    }


def _to_dict(one: Exploration) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scenario": one.scenario.name,
        "actors": list(one.scenario.labels),
        "verdict": one.verdict,
        "states": one.worlds,
        "steps": one.steps,
        "interleavings": one.interleavings,
        "ends": one.ends,
        "outcomes": [list(ways) for ways in one.outcomes],
    }
    if one.schedule is not None:
        found["violations"] = [{"kind": each.kind, "text": each.text} for each in one.schedule.violations]
        rows = one.schedule.rows
        found["schedule"] = [{"actor": row.actor, "step": row.step, "remark": row.remark} for row in rows]
    return found
