"""``guestmem explain``: the ordered checks of a refusal, or the steps and limits of a guest access."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli.words import plain, words
from guestmem.errors import InputError, errno_name

if TYPE_CHECKING:
    from guestmem.model.checks import Observation
    from guestmem.recordings.explain import Explanation
    from guestmem.recordings.reader import Sequence

__all__ = ("EXAMPLES", "explain")

EXAMPLES = """
Examples:

    guestmem explain recording.jsonl --op 24

    guestmem explain recording.jsonl.gz --sequence d612-78-pf_basic --op 9 --profile v6.12

Exit status: 0, or 2 for bad usage or input.
"""


def explain(
    recording: Path = typer.Argument(..., help="JSON Lines, plain or gzip."),
    op: int = typer.Option(None, "--op", metavar="N", help="Index i of the operation; else the first refused one."),
    sequence: str = typer.Option(None, "--sequence", metavar="NAME", help="Which sequence; else the first."),
    profile: list[str] = typer.Option([], "--profile", metavar="NAME", help="Only these profiles; may be repeated."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
) -> None:
    """Explain one operation: which checks passed, which one refused, with the values, under every profile.

    For a guest access: the steps of the fault, the level of the mapping, and what forbade each level above it.
    """
    from guestmem.model.profiles import profile_named
    from guestmem.recordings.explain import explain_operation

    wanted = [profile_named(name).name for name in profile]
    chosen = _sequence(recording, sequence)
    position = _position(recording, chosen, op)
    explanations = [
        explanation
        for explanation in explain_operation(chosen, position)
        if not wanted or explanation.profile in wanted
    ]
    if as_json:
        from guestmem.report.json_text import json_text

        where = {"file": str(recording), "sequence": chosen.begin.seq, "operation": chosen.operations[position].i}
        typer.echo(json_text({**where, "explanations": explanations}))
        return
    typer.echo(
        f"{recording}:{chosen.lines[position]}: {plain(chosen.begin.seq)}, operation {chosen.operations[position].i}"
    )
    _print(explanations)


def _sequence(recording: Path, name: str | None) -> Sequence:
    from guestmem.recordings.reader import read_sequences

    for sequence in read_sequences(recording):
        if name is None or sequence.begin.seq == name:
            return sequence
    raise InputError(f"{recording}: there is no sequence {name!r}")


def _position(recording: Path, sequence: Sequence, op: int | None) -> int:
    for position, operation in enumerate(sequence.operations):
        if operation.i == op or (op is None and isinstance(operation.errno, str)):
            return position
    which = "refused operation" if op is None else f"operation {op}"
    raise InputError(f"{recording}: sequence {sequence.begin.seq!r} has no {which}")


def _print(explanations: list[Explanation]) -> None:
    """Each operation or touch: refusals as a table of checks by profile, accesses step by step."""
    for touch in dict.fromkeys(explanation.touch for explanation in explanations):
        group = [explanation for explanation in explanations if explanation.touch == touch]
        typer.echo("")
        typer.echo(f"{group[0].op} {words(group[0].arguments)}")
        for explanation in group:
            refused = f"  [{explanation.check}] {explanation.reason}" if explanation.check else ""
            typer.echo(f"  {explanation.profile:<6} {words(explanation.outcome)}{refused}")
        _print_checks(group)
        _print_steps(group)


def _print_checks(group: list[Explanation]) -> None:
    """One row per check, one column per profile; the values where they were looked at."""
    walked = {each.profile: {seen.name: seen for seen in each.walked if seen.passed is not None} for each in group}
    names = list(dict.fromkeys(name for checks in walked.values() for name in checks))
    if not names:
        return
    width = max(map(len, names))
    typer.echo("")
    typer.echo(f"  {'check':<{width}}  {''.join(f'{profile:<12}' for profile in walked)}values")
    for name in names:
        cells = [_cell(checks.get(name)) for checks in walked.values()]
        values = dict.fromkeys(checks[name].text for checks in walked.values() if name in checks)
        typer.echo(f"  {name:<{width}}  {''.join(f'{cell:<12}' for cell in cells)}{' | '.join(values)}")


def _cell(observation: Observation | None) -> str:
    if observation is None:
        return "-"
    return "passed" if observation.passed else errno_name(observation.errno)


def _print_steps(group: list[Explanation]) -> None:
    """The steps of a fault; profiles that took the same ones are printed once."""
    by_steps: dict[tuple[Observation, ...], list[str]] = {}
    for explanation in group:
        steps = tuple(observation for observation in explanation.walked if observation.passed is None)
        by_steps.setdefault(steps, []).append(explanation.profile)
    for steps, profiles in by_steps.items():
        if steps:
            typer.echo("")
            typer.echo(f"  {', '.join(profiles)}:")
        for step in steps:
            typer.echo(f"    {step.name:<21} {step.text}")
