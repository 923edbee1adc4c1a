"""``guestmem fuzz``: random sequences on two backends, and the smallest that tells them apart."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli import complete

if TYPE_CHECKING:
    from guestmem.fuzz.campaign import Figures, Seed
    from guestmem.recordings.diff import Group

__all__ = ("EXAMPLES", "fuzz")

_EVERY_S = 5.0

EXAMPLES = """
Examples:

    guestmem fuzz --on model --on kvm --sequences 1000 --seed 1

    guestmem fuzz --on model --on lab:7.3 --jobs 2

    guestmem fuzz --on model:v6.18 --on model:v7.2 --sequences 100 --out differences

Exit status: 0 no new difference, 1 new differences, 2 bad usage, 4 a backend or hypothesis is missing here, 130 ctrl-C,
128 + its number another signal.
"""


def fuzz(
    on: list[str] = typer.Option(
        ...,
        "--on",
        metavar="BACKEND",
        autocompletion=complete.backends,
        help="Twice: model, model:PROFILE, kvm, lab, lab:KERNEL.",
    ),
    sequences: int = typer.Option(1000, "--sequences", min=1, metavar="N", help="How many, one from each seed."),
    seed: int = typer.Option(0, "--seed", min=0, metavar="S", help="The first seed; the next N follow."),
    profile: str = typer.Option(
        None,
        "--profile",
        metavar="NAME",
        autocompletion=complete.profiles,
        help="Which kernel the model is; else the other one's.",
    ),
    out: Path = typer.Option(None, "--out", metavar="DIR", help="Write the smallest difference of each cause there."),
    shrink_s: int = typer.Option(30, "--shrink", min=0, metavar="SECONDS", help="How long to shrink each; 0: do not."),
    jobs: int = typer.Option(1, "--jobs", "-j", min=1, metavar="N", help="Processes; each boots a lab of its own."),
    dask: str = typer.Option(None, "--dask", metavar="ADDRESS", help="Spread over this Dask cluster (extra cluster)."),
    json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
) -> None:
    """Run random sequences on two backends and shrink what differs to the smallest recording of each cause.

    Seeds S to S+N-1 give the same sequences every time, so a run goes on from where the last one ended: --seed S+N.
    Spread over processes or a cluster they find the same.
    """
    from contextlib import closing

    from guestmem.fuzz.campaign import Figures, causes, open_campaign, run_seeds, write_causes
    from guestmem.fuzz.spread import Spread, over_cluster, over_processes
    from guestmem.report.diff_text import fuzz_text
    from guestmem.report.recordings_json import fuzz_json
    from guestmem.targets import pair_named

    figures = Figures()
    stopped: BaseException | None = None
    groups: list[Group] = []
    a, b = pair_named(on, profile)
    with closing(a), closing(b):
        campaign = open_campaign(a, b)
        try:
            spread = Spread(tuple(on), profile, seed, sequences)
            if dask:
                seeds = over_cluster(spread, dask)
            else:
                seeds = over_processes(spread, jobs) if jobs > 1 else run_seeds(campaign, seed, sequences)
            _count(seeds, figures, sequences)
            groups = causes(campaign, figures.differ, shrink_s)
        except (KeyboardInterrupt, SystemExit) as signal:
            stopped = signal.with_traceback(None)  # without what it holds: the child of the campaign
    written = [] if out is None else write_causes(out, groups)
    typer.echo(fuzz_json(campaign, figures, groups) if json else fuzz_text(campaign, figures, groups, written))
    raise stopped or typer.Exit(1 if figures.differ else 0)


def _count(seeds: Iterable[Seed], figures: Figures, wanted: int) -> None:
    """Count them, with a line on stderr now and then."""
    from guestmem.report.diff_text import differing_text

    started = last = time.monotonic()
    for each in seeds:
        figures.add(each)
        now = time.monotonic()
        if now - last >= _EVERY_S:
            last = now
            rate = figures.operations / (now - started)
            differ = f", {differing_text(figures)}" if figures.differ else ""
            line = f"{figures.sequences} of {wanted} sequences, {figures.operations} operations, {rate:.0f}/s{differ}"
            print(line, file=sys.stderr, flush=True)
