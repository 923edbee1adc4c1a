"""What a question can be answered: it holds, it is refuted by an example, or the solver did not get there in time.

Unknown is an answer of its own and never counts as success. Pure values, no solver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

__all__ = ("Holds", "NotAsked", "Refuted", "Unknown", "Values", "Verdict")

Values: TypeAlias = Mapping[str, int]
"""An example: what each variable of the question is."""


@dataclass(frozen=True, slots=True)
class Holds:
    """No values contradict it. witness is the smallest example of what the property speaks of.

    vacuous: there is no such example (a rule that maps nothing huge maps nothing wrongly); then witness meets only
    the assumptions.
    """

    witness: Values = field(default_factory=dict)
    vacuous: bool = False


@dataclass(frozen=True, slots=True)
class Refuted:
    """The smallest values that contradict it: the first variable as small as can be, then the second, and so on."""

    values: Values


@dataclass(frozen=True, slots=True)
class Unknown:
    """The solver gave up. reason is its own word, limit_s what it was given."""

    reason: str
    limit_s: float


@dataclass(frozen=True, slots=True)
class NotAsked:
    """Nothing meets the assumptions, so there is no question; reason says why that is so."""

    reason: str


Verdict: TypeAlias = Holds | Refuted | Unknown | NotAsked
