"""All paths through a piece of Python that branches on symbols: the formula under which each is taken, and its result.

The code is run once for every way through it. At a branch both answers are tried, unless the assumptions and the
branches so far leave only one; when in doubt both are kept, which is never wrong, because a path that cannot be taken
has a condition that nothing satisfies. The code must be deterministic and must not change its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import z3

__all__ = ("Explorer", "Path", "Sum", "decide", "summed")

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Sum:
    """The result of a sum or a shift on a path, and the branches taken before it."""

    condition: Any
    result: Any


@dataclass(frozen=True, slots=True)
class Path(Generic[R]):
    """One way through the code."""

    condition: Any
    result: R
    sums: tuple[Sum, ...]


@dataclass(slots=True)
class _Run:
    """One run: the answers to give first, those given, and which of them could also have been the other."""

    explorer: Explorer
    answers: list[bool]
    conditions: list[Any] = field(default_factory=list)
    open: list[bool] = field(default_factory=list)
    known: dict[int, bool] = field(default_factory=dict)
    sums: list[Sum] = field(default_factory=list)

    def decide(self, term: Any) -> bool:
        key = term.get_id()
        if key in self.known:
            return self.known[key]
        position = len(self.conditions)
        if position == len(self.answers):
            yes, no = (self.explorer.possible([*self.conditions, each]) for each in (term, z3.Not(term)))
            self.answers.append(yes)
            self.open.append(yes and no)
        else:
            self.open.append(False)  # the other answer was queued by the run that first came here
        answer = self.answers[position]
        self.conditions.append(term if answer else z3.Not(term))
        self.known[key] = answer
        return answer


_current: ContextVar[_Run | None] = ContextVar("run", default=None)


def decide(term: Any) -> bool:
    """The answer of this run to a branch; called by symbols, inside ``Explorer.paths`` only."""
    run = _current.get()
    assert run is not None, "bug in guestmem: a symbol was asked for a truth value outside an exploration"
    return run.decide(term)


def summed(result: Any) -> None:
    """Note the result of a sum or a shift; called by symbols."""
    run = _current.get()
    if run is not None:
        run.sums.append(Sum(z3.And(run.conditions), result))


class Explorer:
    """Runs code under assumptions."""

    def __init__(self, assumptions: Sequence[Any]) -> None:
        self._solver = z3.Solver()
        self._solver.add(list(assumptions))

    def possible(self, conditions: list[Any]) -> bool:
        """Whether the conditions can hold together; a solver that gives up counts as yes."""
        return bool(self._solver.check(conditions) != z3.unsat)

    def paths(self, code: Callable[[], R]) -> Iterator[Path[R]]:
        """Every way through the code."""
        pending: list[list[bool]] = [[]]
        while pending:
            run = _Run(self, pending.pop())
            with _running(run):
                result = code()
            for position, is_open in enumerate(run.open):
                if is_open:
                    pending.append([*run.answers[:position], not run.answers[position]])
            yield Path(z3.And(run.conditions), result, tuple(run.sums))

    def holds(self, code: Callable[[], object]) -> Any:
        """The formula under which the code's result is true."""

        def truth() -> bool:
            return bool(code())

        return z3.Or([path.condition for path in self.paths(truth) if path.result])


@contextmanager
def _running(run: _Run) -> Iterator[None]:
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)
