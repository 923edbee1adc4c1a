"""``guestmem explain``: the ordered checks of a refusal, or the steps and limits of a guest access."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli.words import words

if TYPE_CHECKING:
    from guestmem.model.checks import Observation
    from guestmem.transcript.explain import Explanation
    from guestmem.transcript.reader import Sequence

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
    from guestmem.transcript.explain import explain_operation

    wanted = [profile_named(name).name for name in profile]
    chosen = _sequence(recording, sequence)
    position = _position(recording, chosen, op)
    explanations = [
        explanation
        for explanation in explain_operation(chosen, position)
        if not wanted or explanation.profile in wanted
    ]
    if as_json:
        import msgspec

        where = {"file": str(recording), "sequence": chosen.begin.seq, "operation": chosen.operations[position].i}
        text = msgspec.json.encode({**where, "explanations": explanations})
        typer.echo(msgspec.json.format(text, indent=2).decode())
        return
    typer.echo(f"{recording}:{chosen.lines[position]}: {chosen.begin.seq}, operation {chosen.operations[position].i}")
    _print(explanations)


def _sequence(recording: Path, name: str | None) -> Sequence:
    from guestmem.transcript.reader import read_sequences

    for sequence in read_sequences(recording):
        if name is None or sequence.begin.seq == name:
            return sequence
    raise ValueError(f"{recording}: there is no sequence {name!r}")


def _position(recording: Path, sequence: Sequence, op: int | None) -> int:
    for position, operation in enumerate(sequence.operations):
        if operation.i == op or (op is None and isinstance(operation.errno, str)):
            return position
    which = "refused operation" if op is None else f"operation {op}"
    raise ValueError(f"{recording}: sequence {sequence.begin.seq!r} has no {which}")


def _print(explanations: list[Explanation]) -> None:
    """Profiles that walk the same way are printed once."""
    groups: dict[tuple[object, ...], list[Explanation]] = {}
    for explanation in explanations:
        key = (explanation.touch, str(explanation.outcome), tuple(explanation.walked))
        groups.setdefault(key, []).append(explanation)
    last_touch: int | None = -1
    for group in sorted(groups.values(), key=lambda group: group[0].touch or 0):
        first = group[0]
        if first.touch != last_touch:
            typer.echo("")
            typer.echo(f"{first.op} {words(first.arguments)}")
            last_touch = first.touch
        typer.echo(f"  {', '.join(explanation.profile for explanation in group)}: {words(first.outcome)}")
        for observation in first.walked:
            _print_observation(observation)
        if first.check and not (first.walked and first.walked[-1].passed is False):
            typer.echo(f"      {first.check:<28}  {'REFUSED':<16}  {first.reason}")


def _print_observation(observation: Observation) -> None:
    if observation.passed is None:
        typer.echo(f"      {observation.name:<28}  {observation.text}")
        return
    from guestmem.errors import errno_name

    verdict = "passed" if observation.passed else f"REFUSED {errno_name(observation.errno)}"
    typer.echo(f"      {observation.name:<28}  {verdict:<16}  {observation.text}")
    if not observation.passed:
        typer.echo(f"      {'':<28}  {observation.rule} ({observation.source})")
