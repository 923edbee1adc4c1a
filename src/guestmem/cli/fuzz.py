"""``guestmem fuzz``: random sequences on two backends, and the smallest that tells them apart."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli.words import trace

if TYPE_CHECKING:
    from guestmem.fuzz.campaign import Campaign, Figures, Seed
    from guestmem.recordings.difference import Group

__all__ = ("EXAMPLES", "fuzz")

_EVERY_S = 5.0

EXAMPLES = """
Examples:

    guestmem fuzz --on model --on kvm --sequences 1000 --seed 1

    guestmem fuzz --on model:v6.18 --on model:v7.2 --sequences 100 --out differences

Exit status: 0 no new difference, 1 new differences, 2 bad usage, 4 a backend or hypothesis is missing here, 130 ctrl-C.
"""


def fuzz(
    on: list[str] = typer.Option(..., "--on", metavar="BACKEND", help="Twice: model, model:PROFILE, kvm or lab."),
    sequences: int = typer.Option(1000, "--sequences", min=1, metavar="N", help="How many, one from each seed."),
    seed: int = typer.Option(0, "--seed", min=0, metavar="S", help="The first seed; the next N follow."),
    profile: str = typer.Option(
        None, "--profile", metavar="NAME", help="Which kernel the model is; else the other one's."
    ),
    out: Path = typer.Option(None, "--out", metavar="DIR", help="Write the smallest difference of each cause there."),
    shrink_s: int = typer.Option(30, "--shrink", min=0, metavar="SECONDS", help="How long to shrink each; 0: do not."),
    json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
) -> None:
    """Run random sequences on two backends and shrink what differs to the smallest recording of each cause.

    Seeds S to S+N-1 give the same sequences every time, so a run goes on from where the last one ended: --seed S+N.
    """
    from contextlib import closing

    from guestmem.fuzz.campaign import Figures, causes, open_campaign, run_seeds
    from guestmem.recordings.places import pair_named

    figures, stopped = Figures(), False
    groups: list[Group] = []
    a, b = pair_named(on, profile)
    with closing(a), closing(b):
        campaign = open_campaign(a, b)
        try:
            _count(run_seeds(campaign, seed, sequences), figures, sequences)
            groups = causes(campaign, figures.differ, shrink_s)
        except KeyboardInterrupt:
            stopped = True
    written = [] if out is None else _write(out, groups)
    if json:
        from guestmem.report.json_text import json_text

        typer.echo(json_text(_plain(campaign, figures, groups)))
    else:
        _print(campaign, figures, groups, written)
    raise typer.Exit(130 if stopped else 1 if figures.differ else 0)


def _count(seeds: Iterable[Seed], figures: Figures, wanted: int) -> None:
    """Count them, with a line on stderr now and then."""
    started = last = time.monotonic()
    for each in seeds:
        figures.add(each)
        now = time.monotonic()
        if now - last >= _EVERY_S:
            last = now
            rate = figures.operations / (now - started)
            differ = f", {_differing(figures)}" if figures.differ else ""
            line = f"{figures.sequences} of {wanted} sequences, {figures.operations} operations, {rate:.0f}/s{differ}"
            print(line, file=sys.stderr, flush=True)


def _differing(figures: Figures) -> str:
    """The first seeds that differ, so that one can look at them while the others run."""
    seeds, more = figures.differ[:5], len(figures.differ) > 5
    return f"{len(figures.differ)} differ: seed {', '.join(map(str, seeds))}{' and more' if more else ''}"


def _write(directory: Path, groups: list[Group]) -> list[Path]:
    """Each smallest difference as a recording, with what the first backend gave."""
    from guestmem.recordings.record import writing

    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for group in groups:
        path = directory / f"{group.smallest.begin.seq}-{group.cause.op}.jsonl"
        with writing(path) as write:
            write(group.smallest.begin, group.smallest.operations)
        paths.append(path)
    return paths


def _plain(campaign: Campaign, figures: Figures, groups: list[Group]) -> dict[str, object]:
    from guestmem.cli.words import group_values

    return {
        "a": campaign.a.name,
        "b": campaign.b.name,
        "sequences": figures.sequences,
        "operations": figures.operations,
        "not_issued": figures.skipped,
        "known": dict(figures.known),
        "differ": figures.differ,
        "ended": figures.ended,
        "new": [group_values(group) for group in groups],
    }


def _print(campaign: Campaign, figures: Figures, groups: list[Group], written: list[Path]) -> None:
    for number, group in enumerate(groups, 1):
        for index, line in enumerate(trace(group, campaign.a.name, campaign.b.name)):
            typer.echo(f"{number}. {line}" if index == 0 else line)
        typer.echo("")
    for path in written:
        typer.echo(f"written: {path}")
    if figures.differ and not groups:
        typer.echo(_differing(figures))
    for seed, how in figures.ended.items():
        typer.echo(f"seed {seed}: the process: {how}")
    for name, count in sorted(figures.known.items()):
        typer.echo(f"known: {name}: {count}")
    typer.echo(
        f"{figures.operations} operations of {figures.sequences} sequences on {campaign.a.name} and {campaign.b.name}, "
        f"{figures.skipped} not issued, {figures.known.total()} known divergences, "
        f"{len(figures.differ)} sequences differ"
    )
