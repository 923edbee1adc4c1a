"""Races for readers: a failing schedule with the actors side by side, and the tables of what was explored."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from guestmem.races.proof import Exploration, MutationResult, Races
from guestmem.races.schedule import Row

__all__ = ("columns", "mutation_text", "summary")


def columns(one: Exploration) -> str:
    """The shortest failing schedule of a refuted scenario: a column per actor, a row per step."""
    schedule = one.schedule
    if schedule is None:
        return ""
    labels = one.scenario.labels
    cells = [(row.actor, _cell(row)) for row in schedule.rows]
    widths = [max([len(label), *(len(text) for me, text in cells if me == n)]) for n, label in enumerate(labels)]
    lines = [["", *labels], ["", *("-" * width for width in widths)]]
    for number, (me, text) in enumerate(cells, 1):
        lines.append([str(number), *(text if me == n else "" for n in range(len(labels)))])
    table = [f"{line[0]:>4}  " + "   ".join(map(str.ljust, line[1:], widths)) for line in lines]
    reasons = [f"{v.kind}: {v.text}" if v.text else v.kind for v in schedule.violations]
    return "\n".join(line.rstrip() for line in [*table, *(f"  =>  {reason}" for reason in reasons)])


def _cell(row: Row) -> str:
    return f"{row.step} ({row.remark})" if row.remark else row.step


def mutation_text(result: MutationResult) -> str:
    """One mutation: its story and what was found."""
    one = result.exploration
    head = f"without {result.mutation.name}, {one.scenario.name}: {one.verdict}"
    return f"{head}\n{result.mutation.story}\n\n{columns(one)}".rstrip()


def summary(races: Races) -> list[tuple[str, int, int, int, int, int, str]]:
    """A row per machine and number of actors: scenarios, worlds, steps, interleavings, ends, and the worst verdict."""

    def key(one: Exploration) -> tuple[str, int]:
        return one.scenario.machine.name, len(one.scenario.names)

    return [_row(*group, list(members)) for group, members in groupby(races.sound, key)]


def _row(machine: str, actors: int, members: Iterable[Exploration]) -> tuple[str, int, int, int, int, int, str]:
    found = list(members)
    verdicts = [one.verdict for one in found]
    worst = next((verdict for verdict in ("refuted", "unknown") if verdict in verdicts), "holds")
    totals = (
        sum(one.worlds for one in found),
        sum(one.steps for one in found),
        sum(one.interleavings for one in found),
    )
    return (f"{machine}, {actors} actors", len(found), *totals, sum(one.ends for one in found), worst)
