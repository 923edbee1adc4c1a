"""``guestmem diff``: recordings run on two backends, and where these differ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli.words import group_values, trace

if TYPE_CHECKING:
    from guestmem.recordings.collect import Collected

__all__ = ("EXAMPLES", "diff")

EXAMPLES = """
Examples:

    guestmem diff recording.jsonl --on model --on kvm

    guestmem diff examples/recordings/*.gz --on model:v6.18 --on model:v7.2

Exit status: 0 no new difference, 1 new differences, 2 bad usage or input, 4 a backend is missing here.
"""


def diff(
    recordings: list[Path] = typer.Argument(..., metavar="RECORDING...", help="JSON Lines, plain or gzip."),
    on: list[str] = typer.Option(..., "--on", metavar="BACKEND", help="Twice: model, model:PROFILE, kvm or lab."),
    profile: str = typer.Option(
        None, "--profile", metavar="NAME", help="Which kernel the model is; else the other one's."
    ),
    json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    show: int = typer.Option(10, "--show", min=0, metavar="N", help="How many causes to show as a trace."),
) -> None:
    """Run recordings on two backends and group what differs by its cause, the smallest example first.

    Only the first difference of a sequence counts: what follows may be its consequence. What the recording itself
    observed is not looked at.
    """
    from contextlib import closing

    from guestmem.recordings.collect import collect
    from guestmem.recordings.places import pair_named

    a, b = pair_named(on, profile)
    with closing(a), closing(b):
        collected = collect(recordings, a, b)
    if json:
        _print_json(collected, a.name, b.name)
    else:
        _print_text(collected, a.name, b.name, show)
    raise typer.Exit(1 if collected.new else 0)


def _print_text(collected: Collected, a: str, b: str, show: int) -> None:
    from guestmem.recordings.difference import grouped

    new, known = grouped(collected.new), grouped(collected.known)
    for number, group in enumerate(new[:show], 1):
        for index, line in enumerate(trace(group, a, b)):
            typer.echo(f"{number}. {line}" if index == 0 else line)
        typer.echo("")
    if len(new) > show:
        typer.echo(f"and {len(new) - show} more causes; --show {len(new)} shows them")
    for group in known:
        cause = group.cause
        typer.echo(f"known: {cause.divergence}: {cause.op}: {a} {cause.a}, {b} {cause.b}; {group.count}")
    if collected.skipped:
        typer.echo(f"not issued: {collected.skipped}")
    typer.echo(
        f"{collected.operations} operations of {collected.sequences} sequences compared, {len(collected.known)} known "
        f"divergences, {len(collected.new)} sequences differ by {len(new)} causes"
    )


def _print_json(collected: Collected, a: str, b: str) -> None:
    from guestmem.recordings.difference import grouped
    from guestmem.report.json_text import json_text

    counts = {"sequences": collected.sequences, "operations": collected.operations, "not_issued": collected.skipped}
    new, known = ([group_values(group) for group in grouped(each)] for each in (collected.new, collected.known))
    typer.echo(json_text({"a": a, "b": b, **counts, "new": new, "known": known}))
