"""What is claimed of the rules: a property of each of them, or a statement about slots that names none.

``ask`` states a claim for all values; ``explain`` plays a counterexample back on plain Python code and says in one
sentence what goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guestmem.rules import RULES, NoRule, Rule

if TYPE_CHECKING:
    from guestmem.proofs.example import Example
    from guestmem.proofs.situation import Situation
    from guestmem.proofs.solver import Question

__all__ = ("ASKED", "TOUCHED", "VALID", "Property", "Statement")

# Assumptions that several claims make, in words.
VALID = "the slot passes the model's own checks and lies in the file"
TOUCHED = "a page of the slot is touched; the folio taken for it is aligned and lies in the file"


@dataclass(frozen=True, slots=True)
class Property:
    """One column of the table. assumes are its assumptions in words."""

    name: str
    statement: str
    assumes: tuple[str, ...]
    ask: Callable[[Situation, Rule], Question]
    explain: Callable[[Example, Rule], str]


@dataclass(frozen=True, slots=True)
class Statement:
    """A row of the second table, about slots and bindings and not about one rule."""

    name: str
    statement: str
    assumes: tuple[str, ...]
    ask: Callable[[Situation], Question]
    explain: Callable[[Example], str]


ASKED: tuple[Rule, ...] = (NoRule(), *RULES)
"""The rows of the table."""
