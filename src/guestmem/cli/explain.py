"""``guestmem explain``: the ordered checks of a refusal, or the steps and limits of a guest access."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli import complete
from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.recordings.reader import Sequence

__all__ = ("EXAMPLES", "explain")

EXAMPLES = """
Examples:

    guestmem explain examples/findings/pre-fault-after-delete.jsonl

    guestmem explain examples/recordings/v6.18-directed.jsonl.gz --sequence d618-42-slot_file_overlap --op 4

Exit status: 0, or 2 for bad usage or input.
"""


def explain(
    recording: Path = typer.Argument(..., help="JSON Lines, plain or gzip."),
    op: int = typer.Option(None, "--op", metavar="N", help="Index i of the operation; else the first refused one."),
    sequence: str = typer.Option(None, "--sequence", metavar="NAME", help="Which sequence; else the first."),
    profile: list[str] = typer.Option(
        [], "--profile", metavar="NAME", autocompletion=complete.profiles, help="Only these profiles; may be repeated."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
) -> None:
    """Explain one operation: which checks passed, which one refused, with the values, under every profile.

    For a guest access: the steps of the fault, the level of the mapping, and what forbade each level above it.
    """
    from guestmem.explain import explain_operation
    from guestmem.model.profiles import profile_named
    from guestmem.report.explain_text import explain_text
    from guestmem.report.recordings_json import explain_json

    wanted = [profile_named(name) for name in profile]
    chosen = _sequence(recording, sequence)
    position = _position(recording, chosen, op)
    explanations = explain_operation(chosen, position, wanted)
    number = chosen.operations[position].i
    if as_json:
        typer.echo(explain_json(str(recording), chosen.begin.seq, number, explanations))
    else:
        typer.echo(explain_text(f"{recording}:{chosen.lines[position]}", chosen.begin.seq, number, explanations))


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
