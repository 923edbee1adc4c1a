"""``guestmem prove races``: every interleaving of two and three actors. Needs no solver."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import typer

from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.races import Races

__all__ = ("show_races",)


def show_races(mutation: str | None, actors: int | None, *, as_json: bool) -> int:
    """Explore, print, and give the exit status. mutation: None for everything; actors: 2, 3, or None for both."""
    from guestmem.races import MUTATIONS, Races, prove_races, try_mutation
    from guestmem.report.races_json import races_json
    from guestmem.report.races_text import mutation_text, races_text

    if mutation is None:
        found = _with_progress(lambda progress: prove_races((actors,) if actors else (2, 3), progress))
    elif mutation in MUTATIONS:
        found = Races(mutations=(try_mutation(mutation),))
    else:
        raise InputError(f"--mutation {mutation}: needed one of {', '.join(MUTATIONS)}")
    if as_json:
        typer.echo(races_json(found))
    else:
        typer.echo(races_text(found) if mutation is None else mutation_text(found.mutations[0]))
    return 0 if found.holds else 1


def _with_progress(work: Callable[[Callable[[str], None]], Races]) -> Races:
    """What is being explored, on the last line of stderr if that is a terminal."""
    if not sys.stderr.isatty():
        return work(lambda name: None)
    try:
        return work(lambda name: print(f"\r{name[:78]:<78}", end="", file=sys.stderr, flush=True))
    finally:
        print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)
