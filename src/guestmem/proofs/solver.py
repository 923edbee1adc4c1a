"""The one place where z3 is asked: a question, a limit, a verdict; and the smallest example when there is one.

An example is minimised bit by bit from the top: every bit that is set is asked to be clear, given the bits above it.
What is left is the least value, exactly; bits that are clear already cost nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any

import z3

from guestmem.proofs.verdict import Holds, NotAsked, Refuted, Unknown, Values, Verdict

__all__ = ("DEFAULT_LIMIT_S", "Question", "answer", "version")

DEFAULT_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class Question:
    """Whether no values that meet the assumptions bring about the violation; variables in the order of minimising.

    premise is what the property speaks of (a slot that is accepted, a mapping that is made); the violation implies it.
    """

    assumptions: Sequence[Any]
    premise: Any
    violation: Any
    variables: Mapping[str, Any]


class _GaveUp(Exception):
    """The solver returned neither yes nor no."""


def answer(question: Question, limit_s: float = DEFAULT_LIMIT_S) -> Verdict:
    """Ask; at most limit_s seconds for the whole question, minimising included."""
    try:
        return _answer(question, _Session(question.assumptions, limit_s))
    except _GaveUp as reason:
        return Unknown(str(reason), limit_s)


def version() -> str:
    """The solver's name and version."""
    return f"z3 {z3.get_version_string()}"


def _answer(question: Question, session: _Session) -> Verdict:
    if session.possible(question.violation):
        session.add(question.violation)
        return Refuted(session.smallest(question.variables))
    if session.possible(question.premise):
        session.add(question.premise)
        return Holds(session.smallest(question.variables))
    if session.possible():
        return Holds(session.smallest(question.variables), of_nothing=True)
    return NotAsked("nothing meets the assumptions")


class _Session:
    """One incremental solver with a deadline; ``model`` is the last example found."""

    def __init__(self, assumptions: Sequence[Any], limit_s: float) -> None:
        self._deadline = monotonic() + limit_s
        self._solver = z3.SolverFor("QF_BV")
        self._solver.add(list(assumptions))
        self.model: Any = None

    def add(self, formula: Any) -> None:
        """Assume a formula from now on."""
        self._solver.add(formula)

    def possible(self, *more: Any) -> bool:
        """Whether what was added can hold, with more; keeps the example."""
        left_ms = int((self._deadline - monotonic()) * 1000)
        if left_ms <= 0:
            raise _GaveUp("timeout")
        self._solver.set("timeout", left_ms)
        found = self._solver.check(*more)
        if found == z3.unknown:
            raise _GaveUp(self._solver.reason_unknown())
        if found == z3.sat:
            self.model = self._solver.model()
        return bool(found == z3.sat)

    def smallest(self, variables: Mapping[str, Any]) -> Values:
        """The least values in the order of the variables. Nothing that is added here stays."""
        self._solver.push()
        values = {}
        for name, term in variables.items():
            values[name] = self._least(term)
            self._solver.add(term == values[name])
        self._solver.pop()
        return values

    def _least(self, term: Any) -> int:
        value = self._value(term)
        bit = value.bit_length()
        while bit:
            bit -= 1
            if value >> bit & 1 and self.possible(z3.LShR(term, bit) == (value >> bit) - 1):
                value = self._value(term)
        return value

    def _value(self, term: Any) -> int:
        value: int = self.model.eval(term, model_completion=True).as_long()
        return value
