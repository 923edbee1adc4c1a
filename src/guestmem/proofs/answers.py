"""Asking: which questions there are, who asks them (processes), and what comes back, ready to be shown.

A counterexample is played back on plain Python (``explain``) in the process that found it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from multiprocessing import active_children, get_context
from typing import Literal

from guestmem.errors import InputError
from guestmem.geometry import Geometry
from guestmem.proofs.claims import ASKED, Property, Statement
from guestmem.proofs.example import Example
from guestmem.proofs.lattice import Lattice, draw, implies
from guestmem.proofs.properties import PROPERTIES
from guestmem.proofs.situation import Situation
from guestmem.proofs.solver import DEFAULT_LIMIT_S, Question, answer
from guestmem.proofs.statements import STATEMENTS
from guestmem.proofs.verdict import Refuted, Values, Verdict
from guestmem.rules import RULES, Rule, rule_named
from guestmem.text import no_such

__all__ = ("Answer", "Asked", "ask_all", "asked_for", "claim_named", "lattice_from", "whole_table")

_RULES = {rule.name: rule for rule in ASKED}
_PROPERTIES = {each.name: each for each in PROPERTIES}
_STATEMENTS = {each.name: each for each in STATEMENTS}


@dataclass(frozen=True, slots=True)
class Asked:
    """What to ask on one geometry: properties of rules, statements, and whether to draw the lattice; all by name.

    A rule of one's own is FILE.py:NAME, or an object, which only one process can ask about. given pins variables of a
    question to values; limit_s is for each question.
    """

    geometry: Geometry
    properties: tuple[str, ...] = ()
    rules: tuple[str | Rule, ...] = ()
    statements: tuple[str, ...] = ()
    lattice: bool = False
    given: Mapping[str, int] = field(default_factory=dict)
    limit_s: float = DEFAULT_LIMIT_S

    @property
    def rule_names(self) -> tuple[str, ...]:
        """The rules' names."""
        return tuple(rule if isinstance(rule, str) else rule.name for rule in self.rules)

    @property
    def count(self) -> int:
        """How many questions that is."""
        pairs = len(RULES) * (len(RULES) - 1) if self.lattice else 0
        return len(self.properties) * len(self.rules) + len(self.statements) + pairs


@dataclass(frozen=True, slots=True)
class Answer:
    """One question's answer. rule is "" for a statement; for an implication, subject is the looser rule.

    explanation says in one sentence what a counterexample shows, "" where there is none.
    """

    kind: Literal["property", "statement", "implies"]
    subject: str
    rule: str
    verdict: Verdict
    explanation: str = ""


def whole_table(geometry: Geometry, limit_s: float = DEFAULT_LIMIT_S) -> Asked:
    """Everything there is to ask on a geometry."""
    return Asked(geometry, tuple(_PROPERTIES), tuple(_RULES), tuple(_STATEMENTS), lattice=True, limit_s=limit_s)


def asked_for(
    geometry: Geometry, names: Sequence[str], rules: Sequence[str], given: Mapping[str, int], limit_s: float
) -> Asked:
    """What these names ask: properties, statements or "lattice", of these rules; none of both is the whole table.

    ValueError for a name that there is not, and for given values without a question that has them.
    """
    for rule in rules:
        _rule(rule)
    known = ("lattice", *_PROPERTIES, *_STATEMENTS)
    for name in names:
        if name not in known:
            raise InputError(no_such("property", name, sorted(known)))
    if not names and not rules:
        if given:
            raise InputError("--given needs a PROPERTY or a --rule: its variables are those of the question")
        return whole_table(geometry, limit_s)
    return Asked(
        geometry,
        tuple(each for each in _PROPERTIES if each in names or not names),
        tuple(rules) or tuple(_RULES),
        tuple(each for each in _STATEMENTS if each in names),
        lattice="lattice" in names,
        given=given,
        limit_s=limit_s,
    )


def _rule(named: str | Rule) -> Rule:
    """The rule of a name; ValueError lists the names."""
    return named if isinstance(named, Rule) else rule_named(named)


def claim_named(name: str) -> Property | Statement:
    """The property or statement of this name; KeyError if there is none."""
    return _PROPERTIES[name] if name in _PROPERTIES else _STATEMENTS[name]


def ask_all(asked: Asked, processes: int, progress: Callable[[int], None] = lambda done: None) -> list[Answer]:
    """Ask everything; with one process in this one. progress is called with how many more questions are done."""
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


# A unit of work: something small that another process can ask. Everything in it is plain, so that it can be sent.
_Unit = tuple[Literal["statements", "rule", "implies"], str | Rule, Asked]


def _units(asked: Asked) -> list[_Unit]:
    units: list[_Unit] = [("statements", "", asked)] if asked.statements else []
    units += [("rule", rule, asked) for rule in asked.rules if asked.properties]
    units += [("implies", rule.name, asked) for rule in RULES if asked.lattice]
    return units


def _run(units: Sequence[_Unit], processes: int) -> Iterator[list[Answer]]:
    if processes <= 1:
        yield from map(_ask_unit, units)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        try:
            yield from pool.map(_ask_unit, units)
        except BaseException:
            for worker in active_children():  # else the pool waits for their answers
                worker.kill()
            raise


@cache
def _situation(geometry: Geometry) -> Situation:
    return Situation(geometry)


def _ask_unit(unit: _Unit) -> list[Answer]:
    what, name, asked = unit
    situation = _situation(asked.geometry)
    if what == "statements":
        return [_about_statement(situation, _STATEMENTS[each], asked) for each in asked.statements]
    rule = _rule(name)
    if what == "implies":
        return [_about_pair(situation, rule, other, asked) for other in RULES if other.name != name]
    return [_about_rule(situation, _PROPERTIES[each], rule, asked) for each in asked.properties]


def _about_rule(situation: Situation, claim: Property, rule: Rule, asked: Asked) -> Answer:
    verdict = answer(_given(claim.ask(situation, rule), asked.given), asked.limit_s)
    explanation = ""
    if isinstance(verdict, Refuted):
        explanation = claim.explain(Example(situation.geometry, verdict.values), rule)
    return Answer("property", claim.name, rule.name, verdict, explanation)


def _about_statement(situation: Situation, claim: Statement, asked: Asked) -> Answer:
    verdict = answer(_given(claim.ask(situation), asked.given), asked.limit_s)
    explanation = claim.explain(Example(situation.geometry, verdict.values)) if isinstance(verdict, Refuted) else ""
    return Answer("statement", claim.name, "", verdict, explanation)


def _about_pair(situation: Situation, stricter: Rule, looser: Rule, asked: Asked) -> Answer:
    verdict = implies(situation, stricter, looser, asked.limit_s)
    explanation = ""
    if isinstance(verdict, Refuted):
        explanation = _explain_pair(situation.geometry, stricter, looser, verdict.values)
    return Answer("implies", looser.name, stricter.name, verdict, explanation)


def _explain_pair(geometry: Geometry, stricter: Rule, looser: Rule, values: Values) -> str:
    example = Example(geometry, values)
    assert example.accepted(stricter), f"bug in guestmem: {example} does not play back"
    assert not example.accepted(looser), f"bug in guestmem: {example} does not play back"
    return f"{stricter.name} accepts it; {looser.name}: {looser.refuses(example.binding)}"


def _given(question: Question, given: Mapping[str, int]) -> Question:
    unknown = [name for name in given if name not in question.variables]
    if unknown:
        raise InputError(f"no variable {unknown[0]!r} in this question; there are {', '.join(question.variables)}")
    pins = [question.variables[name] == value for name, value in given.items()]
    return replace(question, assumptions=[*question.assumptions, *pins])
