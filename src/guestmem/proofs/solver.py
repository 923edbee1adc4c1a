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

__all__ = ("DEFAULT_LIMIT_S", "Question", "answer", "proven", "version")

DEFAULT_LIMIT_S = 20.0
_START_BITS = (23, 33, 43)


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
    deadline = monotonic() + limit_s
    try:
        return _answer(question, deadline)
    except _GaveUp as reason:
        return Unknown(str(reason), limit_s)


def proven(assumptions: Sequence[Any], claim: Any, limit_s: float = DEFAULT_LIMIT_S) -> bool:
    """Whether the assumptions imply the claim; False too if the solver gives up."""
    try:
        return not _Session([*assumptions, z3.Not(claim)], monotonic() + limit_s).possible()
    except _GaveUp:
        return False


def version() -> str:
    """The solver's name and version."""
    return f"z3 {z3.get_version_string()}"


def _answer(question: Question, deadline: float) -> Verdict:
    # Each is asked of a fresh solver: as a further assumption of one solver the same questions take five times as long.
    violated = _Session([*question.assumptions, question.violation], deadline)
    if violated.possible():
        return Refuted(violated.smallest(question.variables))
    spoken_of = _Session([*question.assumptions, question.premise], deadline)
    if spoken_of.possible():
        return Holds(spoken_of.smallest(question.variables))
    assumed = _Session(question.assumptions, deadline)
    if assumed.possible():
        return Holds(assumed.smallest(question.variables), vacuous=True)
    return NotAsked("nothing meets the assumptions")


class _Session:
    """One incremental solver with a deadline; ``model`` is the last example found."""

    def __init__(self, assumptions: Sequence[Any], deadline: float) -> None:
        self._deadline = deadline
        self._solver = z3.SolverFor("QF_BV")
        self._solver.add(list(assumptions))
        self.model: Any = None

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
        # Only to start near the end: what is found first decides how many bits there are to clear.
        any(self.possible(*(term < 1 << bits for term in variables.values())) for bits in _START_BITS)
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
