"""Which rule implies which: a rule implies another if every slot that it accepts, the other accepts too.

Over all slots that pass the model's own checks, with any page size asked for and any page size of the backing. Rules
that accept the same slots are one node. ``edges`` holds only what does not follow from the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import z3

from guestmem.proofs.situation import Situation
from guestmem.proofs.solver import DEFAULT_LIMIT_S, Question, answer
from guestmem.proofs.verdict import Holds, Unknown, Verdict
from guestmem.rules import Rule

__all__ = ("Lattice", "draw", "implies")


@dataclass(frozen=True, slots=True)
class Lattice:
    """Nodes are names of equivalent rules; an edge (a, b) says that a's slots are some of b's."""

    nodes: tuple[tuple[str, ...], ...]
    edges: tuple[tuple[int, int], ...]
    unknown: tuple[tuple[str, str], ...]


def implies(situation: Situation, stricter: Rule, looser: Rule, limit_s: float = DEFAULT_LIMIT_S) -> Verdict:
    """Whether every slot that the first accepts, the second accepts."""
    first, second = situation.accepts(stricter), situation.accepts(looser)
    names = ("page", "backing", "size", "offset", "gpa", "file_size")
    variables = {name: getattr(situation, name).term for name in names}
    return answer(Question(situation.slot_is_valid, first, z3.And(first, z3.Not(second)), variables), limit_s)


def draw(names: Sequence[str], verdicts: Mapping[tuple[str, str], Verdict]) -> Lattice:
    """Put the answers together."""
    holds = {pair for pair, verdict in verdicts.items() if isinstance(verdict, Holds)}
    nodes: list[tuple[str, ...]] = []
    for name in names:
        if not any(name in node for node in nodes):
            equal = [other for other in names if {(name, other), (other, name)} <= holds]
            nodes.append((name, *equal))
    above = {(i, j) for (i, first), (j, second) in permutations(enumerate(nodes), 2) if (first[0], second[0]) in holds}
    edges = {(i, j) for i, j in above if not any((i, k) in above and (k, j) in above for k in range(len(nodes)))}
    unknown = tuple(sorted(pair for pair, verdict in verdicts.items() if isinstance(verdict, Unknown)))
    return Lattice(tuple(nodes), tuple(sorted(edges)), unknown)
