"""Asking: which questions there are, who asks them (processes), and what comes back, ready to be shown.

A counterexample is played back on plain Python (``tell``) in the process that found it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import get_context
from typing import Literal

from guestmem.geometry import Geometry
from guestmem.proofs import export
from guestmem.proofs.example import Example
from guestmem.proofs.lattice import Lattice, draw, implies
from guestmem.proofs.norule import ASKED, NoRule
from guestmem.proofs.properties import PROPERTIES, Property
from guestmem.proofs.situation import Situation
from guestmem.proofs.solver import DEFAULT_LIMIT_S, Question, answer
from guestmem.proofs.statement import Statement
from guestmem.proofs.statements import STATEMENTS
from guestmem.proofs.verdict import Refuted, Values, Verdict
from guestmem.rules import RULES, Rule

__all__ = ("Answer", "Asked", "ask_all", "lattice_from", "whole_table")


@dataclass(frozen=True, slots=True)
class Asked:
    """What to ask on one geometry: properties of rules, statements, and whether to draw the lattice.

    given pins variables of a question to values; limit_s is for each question.
    """

    geometry: Geometry
    properties: tuple[Property, ...] = ()
    rules: tuple[Rule, ...] = ()
    statements: tuple[Statement, ...] = ()
    lattice: bool = False
    given: Mapping[str, int] = field(default_factory=dict)
    limit_s: float = DEFAULT_LIMIT_S

    @property
    def count(self) -> int:
        """How many questions that is."""
        pairs = len(RULES) * (len(RULES) - 1) if self.lattice else 0
        return len(self.properties) * len(self.rules) + len(self.statements) + pairs


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's answer. rule is "" for a statement; for an implication, subject is the looser rule."""

    kind: Literal["property", "statement", "implies"]
    subject: str
    rule: str
    verdict: Verdict
    story: str = ""
    layout: str = ""
    recording: str = ""


def whole_table(geometry: Geometry, limit_s: float = DEFAULT_LIMIT_S) -> Asked:
    """Everything there is to ask on a geometry."""
    return Asked(geometry, PROPERTIES, ASKED, STATEMENTS, lattice=True, limit_s=limit_s)


def ask_all(asked: Asked, processes: int, progress: Callable[[int], None] = lambda done: None) -> list[Answer]:
    """Ask everything; with one process in this one. progress is told how many questions are done."""
    units = _units(asked)
    found: list[Answer] = []
    for answers in _run(units, min(processes, len(units))):
        found += answers
        progress(len(answers))
    return found


def lattice_from(answers: Sequence[Answer]) -> Lattice:
    """The lattice that the implications among the answers make."""
    pairs = {(each.rule, each.subject): each.verdict for each in answers if each.kind == "implies"}
    return draw([rule.name for rule in RULES], pairs)


# A unit of work: something small that another process can ask, by name.
_Unit = tuple[str, str, Asked]


def _units(asked: Asked) -> list[_Unit]:
    bare = replace(asked, properties=(), rules=(), statements=())
    by_rule = [("rule", rule.name, replace(bare, properties=asked.properties)) for rule in asked.rules]
    apart = [("statements", "", replace(bare, statements=asked.statements))] if asked.statements else []
    pairs = [("implies", rule.name, bare) for rule in RULES] if asked.lattice else []
    return [*apart, *(by_rule if asked.properties else []), *pairs]


def _run(units: Sequence[_Unit], processes: int) -> Iterator[list[Answer]]:
    if processes <= 1:
        yield from map(_ask_unit, units)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_ask_named, [_named(unit) for unit in units])


def _named(unit: _Unit) -> tuple[object, ...]:
    """A unit as plain values: questions are functions, which do not travel."""
    what, name, asked = unit
    properties = tuple(each.name for each in asked.properties)
    statements = tuple(each.name for each in asked.statements)
    return what, name, asked.geometry, properties, statements, dict(asked.given), asked.limit_s


def _ask_named(unit: tuple[object, ...]) -> list[Answer]:
    what, name, geometry, properties, statements, given, limit_s = unit
    assert isinstance(properties, tuple)
    assert isinstance(statements, tuple)
    assert isinstance(geometry, Geometry)
    assert isinstance(given, dict)
    assert isinstance(limit_s, float)
    asked = Asked(
        geometry,
        tuple(each for each in PROPERTIES if each.name in properties),
        (),
        tuple(each for each in STATEMENTS if each.name in statements),
        given=given,
        limit_s=limit_s,
    )
    return _ask_unit((str(what), str(name), asked))


@cache
def _situation(geometry: Geometry) -> Situation:
    return Situation(geometry)


def _ask_unit(unit: _Unit) -> list[Answer]:
    what, name, asked = unit
    situation = _situation(asked.geometry)
    if what == "statements":
        return [_about_statement(situation, each, asked) for each in asked.statements]
    [rule] = (rule for rule in ASKED if rule.name == name)
    if what == "implies":
        return [_about_pair(situation, rule, other, asked) for other in RULES if other.name != name]
    return [_about_rule(situation, each, rule, asked) for each in asked.properties]


def _about_rule(situation: Situation, asking: Property, rule: Rule, asked: Asked) -> Answer:
    question = _given(asking.ask(situation, rule), asked.given)
    verdict = answer(question, asked.limit_s)
    found = Answer("property", asking.name, rule.name, verdict)
    if not isinstance(verdict, Refuted):
        return found
    example = Example(situation.geometry, verdict.values)
    name = f"{asking.name}-{rule.name}"
    # The model has no rule "none"; slot-metadata accepts every slot too.
    ran_as = "slot-metadata" if isinstance(rule, NoRule) else rule.name
    return replace(
        found,
        story=asking.tell(example, rule),
        layout=export.layout(example, name),
        recording=export.recording(example, name, ran_as),
    )


def _about_statement(situation: Situation, asking: Statement, asked: Asked) -> Answer:
    verdict = answer(_given(asking.ask(situation), asked.given), asked.limit_s)
    found = Answer("statement", asking.name, "", verdict)
    if not isinstance(verdict, Refuted):
        return found
    example = Example(situation.geometry, verdict.values)
    record = export.signed_recording if asking.name.startswith("signed-") else export.recording
    return replace(
        found,
        story=asking.tell(example),
        layout=export.layout(example, asking.name),
        recording=record(example, asking.name),
    )


def _about_pair(situation: Situation, stricter: Rule, looser: Rule, asked: Asked) -> Answer:
    verdict = implies(situation, stricter, looser, asked.limit_s)
    story = _tell_pair(situation.geometry, stricter, looser, verdict.values) if isinstance(verdict, Refuted) else ""
    return Answer("implies", looser.name, stricter.name, verdict, story)


def _tell_pair(geometry: Geometry, stricter: Rule, looser: Rule, values: Values) -> str:
    example = Example(geometry, values)
    assert example.accepted(stricter), f"bug in guestmem: {example} does not play back"
    assert not example.accepted(looser), f"bug in guestmem: {example} does not play back"
    return f"{stricter.name} accepts it; {looser.name}: {looser.refuses(example.binding)}"


def _given(question: Question, given: Mapping[str, int]) -> Question:
    unknown = [name for name in given if name not in question.variables]
    if unknown:
        raise ValueError(f"no variable {unknown[0]!r} in this question; there are {', '.join(question.variables)}")
    pins = [question.variables[name] == value for name, value in given.items()]
    return replace(question, assumptions=[*question.assumptions, *pins])
