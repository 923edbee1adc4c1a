"""``guestmem run``: recordings of real kernels, run on a backend and compared outcome by outcome."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from guestmem.cli import complete
from guestmem.errors import InputError

__all__ = ("EXAMPLES", "run")

EXAMPLES = """
Examples:

    guestmem run examples/recordings/v6.12-directed.jsonl.gz

    guestmem run --profile v7.2 examples/findings/file-that-nothing-binds.jsonl

    guestmem run --on kvm --record here.jsonl.gz examples/recordings/v6.18-directed.jsonl.gz

    guestmem run --json examples/recordings/*.jsonl.gz | jq .files

Exit status: 0 every outcome agrees or is a known divergence, 1 something differs, 2 bad usage or input, 4 the backend
is missing here.
"""


def run(
    recordings: list[Path] = typer.Argument(..., metavar="RECORDING...", help="JSON Lines, plain or gzip."),
    profile: str = typer.Option(
        None,
        "--profile",
        metavar="NAME",
        autocompletion=complete.profiles,
        help="v6.12, v6.18, v7.2, v7.3, v7.4 or next; else the recording says.",
    ),
    on: str = typer.Option(
        "model",
        "--on",
        metavar="BACKEND",
        autocompletion=complete.backends,
        help="model, kvm (this machine's), lab or lab:KERNEL.",
    ),
    record: Path = typer.Option(None, "--record", metavar="FILE", help="Write what was observed; gzip for *.gz."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    show: int = typer.Option(5, "--show", min=0, metavar="N", help="How many differences to show as a trace."),
) -> None:
    """Run recordings and compare every outcome with the recorded one.

    Each sequence is a fresh process. A guest touch counts as an operation of its own. A recording without outcomes is
    simply run. On a real kernel, what would cost it unbounded memory is not run and counted apart.
    """
    from contextlib import closing, nullcontext

    from guestmem.recordings.run import run_recording
    from guestmem.recordings.writer import writing
    from guestmem.report.recordings_json import run_json
    from guestmem.report.run_text import run_text
    from guestmem.targets import target_named

    if profile is not None and on != "model":
        raise InputError("--profile says which kernel the model is; a real kernel is what it is")
    target = target_named(on, profile)
    with (
        closing(target),
        writing(record) if record else nullcontext() as write,
        _progress(len(recordings)) as (next_file, next_sequence),
    ):
        reports = []
        for path in recordings:
            next_file(path.name)
            reports.append(run_recording(path, target, next_sequence, write))
    typer.echo(run_json(reports) if as_json else run_text(reports, show, on))
    raise typer.Exit(1 if any(report.differences for report in reports) else 0)


@contextmanager
def _progress(files: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A line on stderr while it takes long, when somebody watches."""
    if not sys.stderr.isatty():
        yield lambda name: None, lambda: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from guestmem.text import safe

    # No thread that refreshes it: the kvm backend forks.
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed} sequences"))
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True, auto_refresh=False
    ) as progress:
        task = progress.add_task("", total=None)
        done = 0

        def next_file(name: str) -> None:
            nonlocal done
            done += 1
            progress.update(task, description=escape(f"file {done} of {files}: {safe(name)}"), refresh=True)

        yield next_file, lambda: progress.update(task, advance=1, refresh=True)
