"""``guestmem run``: recordings of real kernels, run on a backend and compared outcome by outcome."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli.words import plain, words
from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.recordings.report import Difference, FileReport

__all__ = ("EXAMPLES", "run")

EXAMPLES = """
Examples:

    guestmem run examples/v6.12-directed.jsonl.gz

    guestmem run --profile v7.2 recording.jsonl

    guestmem run --on kvm --record here.jsonl.gz recording.jsonl

    guestmem run --json *.jsonl.gz | jq .files

Exit status: 0 every outcome agrees or is a known divergence, 1 something differs, 2 bad usage or input, 4 the backend
is missing here.
"""


def run(
    recordings: list[Path] = typer.Argument(..., metavar="RECORDING...", help="JSON Lines, plain or gzip."),
    profile: str = typer.Option(
        None, "--profile", metavar="NAME", help="v6.12, v6.18, v7.2 or next; else the recording says."
    ),
    on: str = typer.Option("model", "--on", metavar="BACKEND", help="model, kvm (this machine's) or lab."),
    record: Path = typer.Option(None, "--record", metavar="FILE", help="Write what was observed; gzip for *.gz."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    show: int = typer.Option(5, "--show", min=0, metavar="N", help="How many differences to show as a trace."),
) -> None:
    """Run recordings and compare every outcome with the recorded one.

    Each sequence is a fresh process. A guest touch counts as an operation of its own. A recording without outcomes is
    simply run. On a real kernel, what would cost it unbounded memory is not issued and counted apart.
    """
    from contextlib import closing, nullcontext

    from guestmem.recordings.places import place_named
    from guestmem.recordings.record import writing
    from guestmem.recordings.report import run_recording

    if profile is not None and on != "model":
        raise InputError("--profile says which kernel the model is; a real kernel cannot be told")
    place = place_named(on, profile)
    with (
        closing(place),
        writing(record) if record else nullcontext() as write,
        _progress(len(recordings)) as (next_file, next_sequence),
    ):
        reports = []
        for path in recordings:
            next_file(path.name)
            reports.append(run_recording(path, place, next_sequence, write))
    if as_json:
        _print_json(reports)
    else:
        _print_text(reports, show, on)
    raise typer.Exit(1 if any(report.differences for report in reports) else 0)


@contextmanager
def _progress(files: int) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """A line on stderr while it takes long, when somebody watches."""
    if not sys.stderr.isatty():
        yield lambda name: None, lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

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
            progress.update(task, description=f"file {done} of {files}: {name}", refresh=True)

        yield next_file, lambda: progress.update(task, advance=1, refresh=True)


def _print_json(reports: list[FileReport]) -> None:
    from guestmem.report.json_text import json_text

    files = [
        {
            "file": report.file,
            "profile": ", ".join(report.profiles),
            "sequences": report.sequences,
            "operations": report.operations,
            "agreed": report.agreed,
            "known_divergences": report.known_divergences,
            "not_issued": report.skipped.total(),
            "differences": len(report.differences),
        }
        for report in reports
    ]
    differences = [difference for report in reports for difference in report.differences]
    typer.echo(json_text({"files": files, "differences": differences}))


def _print_text(reports: list[FileReport], show: int, on: str) -> None:
    outcomes: Counter[tuple[str, str]] = Counter()
    for report in reports:
        outcomes.update(report.outcomes)
        typer.echo(
            f"{report.file}: profile {', '.join(report.profiles)}, {report.sequences} sequences, "
            f"{report.operations} operations"
        )
    _print_outcomes(outcomes)
    differences = [difference for report in reports for difference in report.differences]
    for number, difference in enumerate(differences[:show], 1):
        typer.echo("")
        _print_difference(number, difference, on)
    _print_totals(reports, len(differences))


def _print_outcomes(outcomes: Counter[tuple[str, str]]) -> None:
    """One line per operation: how often it ended how."""
    typer.echo("")
    by_operation: dict[str, Counter[str]] = {}
    for (op, ended), count in outcomes.items():
        by_operation.setdefault(op, Counter())[ended] += count
    width = max(map(len, by_operation), default=0)
    for op, endings in sorted(by_operation.items()):
        parts = (f"{ended} {count}" for ended, count in sorted(endings.items(), key=lambda item: (-item[1], item[0])))
        typer.echo(f"  {op:<{width}}  {sum(endings.values()):>6}  {', '.join(parts)}")


def _print_difference(number: int, difference: Difference, on: str) -> None:
    where = f"{difference.file}:{difference.line}"
    touch = "" if difference.touch is None else f", touch {difference.touch}"
    typer.echo(f"difference {number}: {where}: {plain(difference.sequence)}, operation {difference.index}{touch}")
    typer.echo(f"  {difference.op} {words(difference.arguments)}")
    typer.echo(f"    recorded  {words(difference.recorded)}")
    typer.echo(f"    {on:<8}  {words(difference.got)}")
    if difference.check:
        typer.echo(f"    decided   [{difference.check}] {difference.reason}")
    elif difference.reason:
        typer.echo(f"    decided   {difference.reason}")
    elif on == "model":
        typer.echo("    decided   no check refused")


def _print_totals(reports: list[FileReport], differences: int) -> None:
    operations = sum(report.operations for report in reports)
    agreed = sum(report.agreed for report in reports)
    known: Counter[str] = Counter()
    for report in reports:
        known.update(report.divergences)
    compared = sum(report.compared for report in reports)
    listed = ", ".join(f"{name} {count}" for name, count in sorted(known.items()))
    typer.echo("")
    skipped: Counter[str] = Counter()
    for report in reports:
        skipped.update(report.skipped)
    for why, count in sorted(skipped.items()):
        typer.echo(f"not issued: {count}: {plain(why)}")
    if not compared:
        typer.echo(f"{operations} operations were run; none had a recorded outcome to compare with")
        return
    typer.echo(
        f"{agreed} of {operations} operations agree, {known.total()} known divergences"
        f"{f' ({listed})' if listed else ''}, {differences} differences"
    )
