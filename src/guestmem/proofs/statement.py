"""A statement about slots and bindings that is not about one rule: a row of the second table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guestmem.proofs.example import Example
    from guestmem.proofs.situation import Situation
    from guestmem.proofs.solver import Question

__all__ = ("Statement",)


@dataclass(frozen=True, slots=True)
class Statement:
    """``ask`` states it for all values, ``tell`` plays a counterexample back and tells it in one sentence."""

    name: str
    statement: str
    assumes: tuple[str, ...]
    ask: Callable[[Situation], Question]
    tell: Callable[[Example], str]
