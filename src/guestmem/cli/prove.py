"""``guestmem prove``: the alignment rules for all values, and what the mails concluded, proved or refuted."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from guestmem.cli import prove_races

if TYPE_CHECKING:
    from guestmem.proofs.answers import Answer, Asked
    from guestmem.proofs.properties import Property
    from guestmem.proofs.statement import Statement
    from guestmem.proofs.verdict import Verdict

__all__ = ("EXAMPLES", "prove")

EXAMPLES = """
Examples:

    guestmem prove

    guestmem prove bounded --rule fits-size

    guestmem prove races --mutation recheck

    guestmem prove begins-inside --rule none --given page=1G --given offset=0x4000 --given access=0x8000

Exit status: 1 if any answer is *unknown*, or if something asked for by name (a PROPERTY or --rule) is refuted, or if
nothing meets the assumptions; else 0. The whole table is a report: refutations in it are findings, exit 0. 2 for bad
usage, 4 if the solver is not installed.
"""
_MARKS = {"Holds": "yes", "Refuted": "no", "Unknown": "?", "NotAsked": "n/a"}


def prove(
    properties: list[str] = typer.Argument(
        None,
        metavar="[PROPERTY...]",
        help="A property of the rules, a statement, `lattice` or `races`; else the table.",
    ),
    rule: list[str] = typer.Option([], "--rule", metavar="NAME", help="Only these rules; `none` is no rule at all."),
    geometry: str = typer.Option("x86-64", "--geometry", metavar="NAME", help="The architecture's page sizes."),
    given: list[str] = typer.Option([], "--given", metavar="NAME=VALUE", help="Pin a variable, as offset=0x4000."),
    timeout: float = typer.Option(20.0, "--timeout", min=0.001, metavar="S", help="Seconds for one question."),
    jobs: int = typer.Option(2, "--jobs", min=1, metavar="N", help="Processes."),
    write: Path = typer.Option(
        None, "--write", metavar="DIR", help="Write each counterexample there, as a layout and as a recording."
    ),
    mutation: str = typer.Option(None, "--mutation", metavar="NAME", help="races: take one rule away."),
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
            raise ValueError("prove races goes alone: no other property, --rule, --given or --write")
        raise typer.Exit(prove_races.show_races(mutation, actors, as_json=as_json))
    if mutation or actors:
        raise ValueError("--mutation and --actors go with: guestmem prove races")
    try:
        import z3  # noqa: F401  # only to know whether it is there
    except ImportError:
        typer.echo("guestmem: proofs need a solver: pip install 'guestmem[proofs]' (z3-solver)", err=True)
        raise typer.Exit(4) from None
    from guestmem.proofs.answers import ask_all

    asked = _asked(properties or [], rule, geometry, given, timeout)
    with _progress(asked.count) as progress:
        answers = ask_all(asked, jobs, progress)
    if write is not None:
        _write(write, answers)
    if as_json:
        _print_json(asked, answers)
    else:
        _print_text(asked, answers)
    raise typer.Exit(_status(answers, by_name=bool(properties or rule)))


def _asked(names: list[str], rules: list[str], geometry: str, given: list[str], timeout: float) -> Asked:
    from guestmem.geometry import geometry_named
    from guestmem.proofs.answers import Asked, whole_table
    from guestmem.proofs.norule import ASKED, asked_named
    from guestmem.proofs.properties import PROPERTIES
    from guestmem.proofs.statements import STATEMENTS
    from guestmem.units import parse_size

    chosen = tuple(asked_named(name) for name in rules) or ASKED
    pins = {name: parse_size(value) for name, _, value in (pin.partition("=") for pin in given)}
    place = geometry_named(geometry)
    if not names and not rules:
        if pins:
            raise ValueError("--given needs a PROPERTY or a --rule: its variables are those of the question")
        return whole_table(place, timeout)
    known = {"lattice", *(each.name for each in PROPERTIES), *(each.name for each in STATEMENTS)}
    for name in names:
        if name not in known:
            raise ValueError(f"no property {name!r}; there are {', '.join(sorted(known))}")
    return Asked(
        place,
        tuple(each for each in PROPERTIES if each.name in names or not names),
        chosen,
        tuple(each for each in STATEMENTS if each.name in names),
        lattice="lattice" in names,
        given=pins,
        limit_s=timeout,
    )


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


def _write(directory: Path, answers: list[Answer]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for each in answers:
        if each.layout:
            name = f"{each.subject}-{each.rule}" if each.rule else each.subject
            (directory / f"{name}.toml").write_text(f"# {each.story}.\n{each.layout}")
            (directory / f"{name}.jsonl").write_text(each.recording)


# -- text --------------------------------------------------------------------------------------------------------------


def _print_text(asked: Asked, answers: list[Answer]) -> None:
    typer.echo(f"geometry {asked.geometry.name}, {_solver()}, at most {asked.limit_s:g} s a question")
    of_rules = [each for each in answers if each.kind == "property"]
    whole = len(of_rules) > len(asked.properties) and len(asked.properties) > 1
    if whole:
        _print_table(asked, of_rules)
    else:
        _print_each(asked, of_rules)
    _print_each(asked, [each for each in answers if each.kind == "statement"], brief=whole)
    if asked.lattice:
        _print_lattice(answers)
    _print_totals(answers)


def _print_table(asked: Asked, answers: list[Answer]) -> None:
    """Rules by properties: yes, no, - (holds of nothing), ?."""
    cells = {(each.rule, each.subject): _mark(each.verdict) for each in answers}
    width = max(len(rule.name) for rule in asked.rules)
    typer.echo("")
    for number, each in enumerate(asked.properties, 1):
        typer.echo(f"  {number:>2} {each.name:<17} {each.statement}")
    typer.echo("")
    typer.echo(f"  {'':<{width}} {''.join(f'{n:>5}' for n in range(1, len(asked.properties) + 1))}")
    for rule in asked.rules:
        row = "".join(f"{cells[rule.name, each.name]:>5}" for each in asked.properties)
        typer.echo(f"  {rule.name:<{width}} {row}")
    typer.echo("")
    typer.echo("  yes: holds for all values; no: refuted; -: holds because there is nothing to speak of; ?: unknown")


def _mark(verdict: Verdict) -> str:
    from guestmem.proofs.verdict import Holds

    if isinstance(verdict, Holds) and verdict.of_nothing:
        return "-"
    return _MARKS[type(verdict).__name__]


def _print_each(asked: Asked, answers: list[Answer], *, brief: bool = False) -> None:
    """Answer by answer: what was asked, the verdict, the numbers, the story."""
    texts = _texts(asked)
    for each in answers:
        subject = texts[each.subject]
        typer.echo("")
        typer.echo(f"{each.subject}{f' of {each.rule}' if each.rule else ''}: {_say(each.verdict)}")
        typer.echo(f"  asked      {subject.statement}")
        if not brief:
            for assumption in subject.assumes:
                typer.echo(f"  assumed    {assumption}")
        numbers = _numbers(each.verdict)
        if each.story:
            typer.echo(f"  refuted    {each.story}")
        if numbers and not brief:
            typer.echo(f"  {'values' if each.story else 'witness':<10} {_hex(numbers)}")
        if each.layout and len(answers) == 1:
            typer.echo("")
            typer.echo(each.layout, nl=False)


def _texts(asked: Asked) -> dict[str, Property | Statement]:
    """What each subject states."""
    texts: dict[str, Property | Statement] = {each.name: each for each in asked.properties}
    return texts | {each.name: each for each in asked.statements}


def _say(verdict: Verdict) -> str:
    from guestmem.proofs.verdict import Holds, NotAsked, Refuted, Unknown

    match verdict:
        case Holds(of_nothing=True):
            return "holds (of nothing: no value is in its scope)"
        case Holds():
            return "holds for all values"
        case Refuted():
            return "refuted"
        case Unknown(reason, limit_s):
            return f"unknown ({reason} after {limit_s:g} s)"
        case NotAsked(reason):
            return f"not asked: {reason}"


def _numbers(verdict: Verdict) -> dict[str, int]:
    from guestmem.proofs.verdict import Holds, Refuted

    match verdict:
        case Holds(witness, _):
            return dict(witness)
        case Refuted(values):
            return dict(values)
    return {}


def _hex(numbers: dict[str, int]) -> str:
    return " ".join(f"{name}={value:#x}" for name, value in numbers.items())


def _print_lattice(answers: list[Answer]) -> None:
    from guestmem.proofs.answers import lattice_from

    lattice = lattice_from(answers)
    typer.echo("")
    typer.echo("which rule implies which (every slot the left one accepts, the right one accepts):")
    for node in lattice.nodes:
        if len(node) > 1:
            typer.echo(f"  {' = '.join(node)}")
    for low, high in lattice.edges:
        typer.echo(f"  {lattice.nodes[low][0]} => {lattice.nodes[high][0]}")


def _print_totals(answers: list[Answer]) -> None:
    from collections import Counter

    counts = Counter(type(each.verdict).__name__ for each in answers)
    typer.echo("")
    typer.echo(
        f"{len(answers)} questions: {counts['Holds']} hold, {counts['Refuted']} refuted, {counts['Unknown']} unknown"
        + (f", {counts['NotAsked']} not asked" if counts["NotAsked"] else "")
    )


# -- JSON --------------------------------------------------------------------------------------------------------------


def _print_json(asked: Asked, answers: list[Answer]) -> None:
    from guestmem.proofs.verdict import Unknown
    from guestmem.report.json_text import json_text

    texts = _texts(asked)
    rows = []
    for each in answers:
        row: dict[str, Any] = {"kind": each.kind, "subject": each.subject, "rule": each.rule or None}
        row |= {"verdict": type(each.verdict).__name__.lower(), "values": _numbers(each.verdict)}
        row |= {"of_nothing": getattr(each.verdict, "of_nothing", False)}
        if each.subject in texts:
            row |= {"statement": texts[each.subject].statement, "assumes": list(texts[each.subject].assumes)}
        if isinstance(each.verdict, Unknown):
            row |= {"reason": each.verdict.reason}
        if each.story:
            row |= {"story": each.story, "layout": each.layout, "recording": each.recording}
        rows.append(row)
    head = {"geometry": asked.geometry.name, "solver": _solver(), "limit_s": asked.limit_s}
    typer.echo(json_text({**head, "answers": rows}))


def _solver() -> str:
    from guestmem.proofs.solver import version

    return version()
