"""``guestmem diff``: recordings run on two backends, and where these differ."""

from __future__ import annotations

from pathlib import Path

import typer

from guestmem.cli import complete

__all__ = ("EXAMPLES", "diff")

EXAMPLES = """
Examples:

    guestmem diff examples/recordings/v6.18-directed.jsonl.gz --on model --on kvm

    guestmem diff examples/recordings/*.gz --on model:v6.18 --on model:v7.2

Exit status: 0 no new difference, 1 new differences, 2 bad usage or input, 4 a backend is missing here.
"""


def diff(
    recordings: list[Path] = typer.Argument(..., metavar="RECORDING...", help="JSON Lines, plain or gzip."),
    on: list[str] = typer.Option(
        ...,
        "--on",
        metavar="BACKEND",
        autocompletion=complete.backends,
        help="Twice: model, model:PROFILE, kvm, lab, lab:KERNEL.",
    ),
    profile: str = typer.Option(
        None,
        "--profile",
        metavar="NAME",
        autocompletion=complete.profiles,
        help="Which kernel the model is; else the other one's.",
    ),
    json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    show: int = typer.Option(10, "--show", min=0, metavar="N", help="How many causes to show as a trace."),
) -> None:
    """Run recordings on two backends and group what differs by its cause, the smallest example first.

    Only the first difference of a sequence counts: what follows may be its consequence. What the recording itself
    observed is not looked at.
    """
    from contextlib import closing

    from guestmem.recordings.diff import diff_recordings
    from guestmem.report.diff_text import diff_text
    from guestmem.report.recordings_json import diff_json
    from guestmem.targets import pair_named

    a, b = pair_named(on, profile)
    with closing(a), closing(b):
        collected = diff_recordings(recordings, a, b)
    names = a.name, b.name
    typer.echo(diff_json(collected, *names) if json else diff_text(collected, *names, show))
    raise typer.Exit(1 if collected.new else 0)
