"""The text form of ``guestmem prove``, and the words that docs/proofs.md shares with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from guestmem.proofs.answers import Answer, Asked, claim_named, lattice_from
from guestmem.proofs.solver import version
from guestmem.proofs.verdict import Holds, NotAsked, Refuted, Unknown, Values, Verdict
from guestmem.report.proofs_files import layout

__all__ = ("mark", "numbers_of", "proofs_lines", "values_text")

_MARKS = {Holds: "yes", Refuted: "no", Unknown: "?", NotAsked: "n/a"}


def proofs_lines(asked: Asked, answers: list[Answer]) -> Iterator[str]:
    """The table of rules and properties if several of both were asked, each answer in words else; then the totals."""
    yield f"geometry {asked.geometry.name}, {version()}, at most {asked.limit_s:g} s a question"
    of_rules = [each for each in answers if each.kind == "property"]
    statements = [each for each in answers if each.kind == "statement"]
    whole = len(of_rules) > len(asked.properties) > 1
    yield from _table(asked, of_rules) if whole else _each(asked, of_rules)
    yield from _each(asked, statements, brief=whole)
    if asked.lattice:
        yield from _lattice(answers)
    yield from ("", _totals(answers))


def mark(verdict: Verdict) -> str:
    """One cell of the table."""
    return "-" if isinstance(verdict, Holds) and verdict.vacuous else _MARKS[type(verdict)]


def numbers_of(verdict: Verdict) -> Values:
    """The counterexample, or the witness that the assumptions can be met; empty where there is neither."""
    match verdict:
        case Holds(witness, _):
            return witness
        case Refuted(values):
            return values
    return {}


def values_text(values: Values) -> str:
    """Variables with their values in hexadecimal.

    >>> values_text({"size": 4096, "offset": 0})
    'size=0x1000 offset=0x0'
    """
    return " ".join(f"{name}={value:#x}" for name, value in values.items())


def _table(asked: Asked, answers: list[Answer]) -> Iterator[str]:
    cells = {(each.rule, each.subject): mark(each.verdict) for each in answers}
    width = max(map(len, asked.rule_names))
    yield ""
    for number, name in enumerate(asked.properties, 1):
        yield f"  {number:>2} {name:<17} {claim_named(name).statement}"
    yield from ("", f"  {'':<{width}} {''.join(f'{n:>5}' for n in range(1, len(asked.properties) + 1))}")
    for rule in asked.rule_names:
        yield f"  {rule:<{width}} {''.join(f'{cells[rule, name]:>5}' for name in asked.properties)}"
    yield ""
    yield "  yes: holds for all values; no: refuted; -: holds vacuously, no slot satisfies the premise; ?: unknown"


def _each(asked: Asked, answers: list[Answer], *, brief: bool = False) -> Iterator[str]:
    """Answer by answer: what was asked, the verdict, the explanation, the numbers."""
    for each in answers:
        claim = claim_named(each.subject)
        yield from ("", f"{each.subject}{f' of {each.rule}' if each.rule else ''}: {_verdict(each.verdict)}")
        yield f"  asked      {claim.statement}"
        if not brief:
            yield from (f"  assumed    {assumption}" for assumption in claim.assumes)
        if each.explanation:
            yield f"  refuted    {each.explanation}"
        numbers = numbers_of(each.verdict)
        if numbers and not brief:
            yield f"  {'values' if each.explanation else 'witness':<10} {values_text(numbers)}"
        if len(answers) == 1 and (example := layout(asked.geometry, each)):
            yield from ("", *example.splitlines())


def _verdict(verdict: Verdict) -> str:
    match verdict:
        case Holds(vacuous=True):
            return "holds vacuously: no slot satisfies the premise"
        case Holds():
            return "holds for all values"
        case Refuted():
            return "refuted"
        case Unknown(reason, limit_s):
            return f"unknown ({reason} after {limit_s:g} s)"
        case NotAsked(reason):
            return f"not asked: {reason}"


def _lattice(answers: list[Answer]) -> Iterator[str]:
    lattice = lattice_from(answers)
    yield from ("", "which rule implies which (every slot the left one accepts, the right one accepts):")
    yield from (f"  {' = '.join(node)}" for node in lattice.nodes if len(node) > 1)
    yield from (f"  {lattice.nodes[low][0]} => {lattice.nodes[high][0]}" for low, high in lattice.edges)


def _totals(answers: list[Answer]) -> str:
    counts = Counter(type(each.verdict) for each in answers)
    questions = "1 question" if len(answers) == 1 else f"{len(answers)} questions"
    text = f"{questions}: {counts[Holds]} hold, {counts[Refuted]} refuted, {counts[Unknown]} unknown"
    return text + (f", {counts[NotAsked]} not asked" if counts[NotAsked] else "")
