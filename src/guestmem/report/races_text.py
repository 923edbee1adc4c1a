"""Races as text: a failing schedule with the actors side by side, and the totals of what was explored."""

from __future__ import annotations

from guestmem.races.proof import Exploration, MutationResult, Races, totals
from guestmem.races.schedule import Row

__all__ = ("columns", "mutation_text", "races_text")

_VERDICTS = {"holds": "holds", "refuted": "is refuted", "unknown": "is unknown"}


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
    """One mutation: the rule, what goes wrong without it, and the schedule that shows it."""
    one = result.exploration
    counts = f"{one.worlds} states, {one.interleavings} interleavings"
    head = f"Without {result.mutation.name}, {one.scenario.name} {_VERDICTS[one.verdict]}: {counts}."
    return f"{head}\n{result.mutation.explanation}\n\n{columns(one)}".rstrip()


def races_text(races: Races) -> str:
    """Everything, as lines for a terminal."""
    lines = [f"{'machine':<8} {'actors':>6} {'scenarios':>9} {'states':>8} {'steps':>8} {'interleavings':>20}  verdict"]
    for row in totals(races):
        numbers = f"{row.actors:>6} {row.scenarios:>9} {row.worlds:>8} {row.steps:>8} {_short(row.interleavings):>20}"
        lines.append(f"{row.machine:<8} {numbers}  {row.verdict}")
    for one in races.sound:
        if one.verdict != "holds":
            lines += ["", f"{one.scenario.name} {_VERDICTS[one.verdict]}.", columns(one)]
    lines += ["", "Each rule taken away, and what the explorer finds without it:"]
    for result in races.mutations:
        lines.append(
            f"  {result.mutation.name:<24} {result.exploration.scenario.name:<34} {_found(result.exploration)}"
        )
    lines += ["", "Linux 6.12 fails in these scenarios:"]
    lines += [f"  {one.scenario.name:<34} {_found(one)}" for one in races.released]
    return "\n".join(lines)


def _found(one: Exploration) -> str:
    if one.schedule is None:
        return one.verdict
    return f"{', '.join(one.schedule.kinds)} after {len(one.schedule.rows)} steps"


def _short(number: int) -> str:
    return str(number) if number < 10**15 else f"{number:.3e}"
