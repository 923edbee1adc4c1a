"""``guestmem prove``: the alignment rules for all values, and what the mails concluded, proved or refuted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli import complete, prove_races
from guestmem.errors import BackendUnavailable, InputError

if TYPE_CHECKING:
    from guestmem.proofs.answers import Answer

__all__ = ("EXAMPLES", "prove")

EXAMPLES = """
Examples:

    guestmem prove

    guestmem prove bounded --rule fits-size

    guestmem prove --rule examples/rules/page_order.py:PageOrder

    guestmem prove races --mutation recheck

    guestmem prove begins-inside --rule none --given page=1G --given offset=0x4000 --given access=0x8000

Exit status: 1 if any answer is *unknown*, or if something asked for by name (a PROPERTY or --rule) is refuted, or if
nothing meets the assumptions; else 0. The whole table is a report: refutations in it are findings, exit 0. 2 for bad
usage, 4 if the solver is not installed.
"""


def _properties(incomplete: str) -> list[str]:
    """What can be asked; nothing where the solver is not installed."""
    try:
        from guestmem.proofs.properties import PROPERTIES
        from guestmem.proofs.statements import STATEMENTS
    except ImportError:
        return []
    names = [*(each.name for each in PROPERTIES), *(each.name for each in STATEMENTS), "lattice", "races"]
    return complete.starting(incomplete, names)


def prove(
    properties: list[str] = typer.Argument(
        None,
        metavar="[PROPERTY...]",
        autocompletion=_properties,
        help="A property of the rules, a statement, `lattice` or `races`; else the table.",
    ),
    rule: list[str] = typer.Option(
        [],
        "--rule",
        metavar="NAME",
        autocompletion=complete.rules,
        help="Only these rules; `none` asks without one, FILE.py:NAME is your own.",
    ),
    geometry: str = typer.Option(
        "x86-64",
        "--geometry",
        metavar="NAME",
        autocompletion=complete.geometries,
        help="The architecture's page sizes.",
    ),
    given: list[str] = typer.Option([], "--given", metavar="NAME=VALUE", help="Pin a variable, as offset=0x4000."),
    timeout: float = typer.Option(20.0, "--timeout", min=0.001, metavar="S", help="Seconds for one question."),
    jobs: int = typer.Option(2, "--jobs", min=1, metavar="N", help="Processes."),
    write: Path = typer.Option(
        None, "--write", metavar="DIR", help="Write each counterexample there, as a layout and as a recording."
    ),
    mutation: str = typer.Option(
        None, "--mutation", metavar="NAME", autocompletion=complete.mutations, help="races: take one rule away."
    ),
    actors: int = typer.Option(None, "--actors", min=2, max=3, metavar="N", help="races: pairs or triples only."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
) -> None:
    """Prove or refute, for all 64-bit values, what is claimed of the alignment rules; `races`: explore all orders.

    A refutation is the smallest counterexample, played back on the rule's own code before it is shown. `prove races`
    runs every interleaving of two and three actors (faults, punch holes, attribute and slot changes, close, poison) on
    small machines, and needs no solver.
    """
    if "races" in (properties or []):
        if len(properties) > 1 or rule or given or write:
            raise InputError("prove races goes alone: no other property, --rule, --given or --write")
        raise typer.Exit(prove_races.show_races(mutation, actors, as_json=as_json))
    if mutation or actors:
        raise InputError("--mutation and --actors go with: guestmem prove races")
    try:
        import z3  # noqa: F401  # only to know whether it is there
    except ImportError:
        raise BackendUnavailable("proofs need a solver: pip install 'guestmem[proofs]' (z3-solver)") from None
    from guestmem.geometry import geometry_named
    from guestmem.proofs.answers import ask_all, asked_for
    from guestmem.report.proofs_files import write_counterexamples
    from guestmem.report.proofs_json import proofs_json
    from guestmem.report.proofs_text import proofs_lines
    from guestmem.units import parse_size

    pins = {name: parse_size(value) for name, _, value in (pin.partition("=") for pin in given)}
    asked = asked_for(geometry_named(geometry), properties or [], rule, pins, timeout)
    with _progress(asked.count) as progress:
        answers = ask_all(asked, jobs, progress)
    if write is not None:
        write_counterexamples(write, asked.geometry, answers)
    typer.echo(proofs_json(asked, answers) if as_json else "\n".join(proofs_lines(asked, answers)))
    raise typer.Exit(_status(answers, by_name=bool(properties or rule)))


def _status(answers: list[Answer], *, by_name: bool) -> int:
    from guestmem.proofs.verdict import NotAsked, Refuted, Unknown

    bad: tuple[type, ...] = (Unknown, NotAsked, Refuted) if by_name else (Unknown, NotAsked)
    # An implication that does not hold is how the lattice looks, not something claimed.
    return int(any(isinstance(each.verdict, bad if each.kind != "implies" else Unknown) for each in answers))


@contextmanager
def _progress(questions: int) -> Iterator[Callable[[int], None]]:
    """A line on stderr while it takes long, when somebody watches."""
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("questions", total=questions)
        yield lambda done: bar.advance(task, done)
