"""``guestmem kernels``: what each kernel answers, side by side."""

from __future__ import annotations

from contextlib import ExitStack, closing
from pathlib import Path

import typer

from guestmem.cli import complete
from guestmem.errors import InputError

__all__ = ("EXAMPLES", "kernels")

EXAMPLES = """
Examples:

    guestmem kernels --on lab:6.12 --on lab:7.2 --on lab:7.3 examples/recordings/v7.3-directed.jsonl.gz

    guestmem kernels --on model:v6.18 --on model:v7.3 --on model:v7.4 examples/recordings/*-directed.jsonl.gz

Exit status: 0, 2 bad usage or input, 4 a backend is missing here.
"""


def kernels(
    recordings: list[Path] = typer.Argument(..., metavar="RECORDING...", help="JSON Lines, plain or gzip."),
    on: list[str] = typer.Option(
        ...,
        "--on",
        metavar="BACKEND",
        autocompletion=complete.backends,
        help="Two or more: model:PROFILE, kvm, lab, lab:KERNEL; the newest last.",
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    html: Path | None = typer.Option(None, "--html", metavar="FILE", help="Write one HTML page that can be searched."),
    as_markdown: bool = typer.Option(False, "--markdown", help="A page for the documentation on stdout."),
) -> None:
    """Show each kind of call that these kernels do not all answer alike, with what each answers and an example."""
    from guestmem.model.profiles import PROFILES
    from guestmem.outfile import write_text
    from guestmem.recordings.matrix import behaviour
    from guestmem.report.kernels import kernels_html, kernels_json, kernels_markdown, print_kernels
    from guestmem.targets import target_named

    if len(on) < 2:
        raise InputError("kernels are compared: give --on at least twice")
    with ExitStack() as stack:
        targets = [stack.enter_context(closing(target_named(name))) for name in on]
        models = [
            target_named(f"model:{name}")
            for name, profile in PROFILES.items()
            if not (profile.huge or profile.in_place)
        ]
        matrix = behaviour(recordings, targets, models)
    if html is not None:
        write_text(html, kernels_html(matrix))
    if as_json:
        typer.echo(kernels_json(matrix))
    elif as_markdown:
        command = f"guestmem kernels --markdown {' '.join(f'--on {name}' for name in on)}"
        typer.echo(kernels_markdown(matrix, f"{command} {' '.join(map(str, recordings))}"), nl=False)
    else:
        from guestmem.report.console import console

        print_kernels(console(), matrix)
