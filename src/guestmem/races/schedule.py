"""The shortest schedule that fails, as rows of two or three columns: who goes on, by which step, and what it found.

Shortest in steps; among those, the one in which the actors change least often, since that is the easiest to read. The
search is over the unreduced graph, so no failing schedule at all is shorter.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise

from guestmem.races.check import HARMS, Violation, violations
from guestmem.races.explore import Graph
from guestmem.races.world import HOST, NOTHING, World

__all__ = ("Row", "FailingSchedule", "shortest_failure")

Node = tuple[int, int]  # a world and the actor that led there
Way = list[Node]


@dataclass(frozen=True, slots=True)
class Row:
    """One step. actor: the column, from 0. remark: what the step found or changed, "" if there is little to say."""

    actor: int
    step: str
    remark: str


@dataclass(frozen=True, slots=True)
class FailingSchedule:
    """Steps in order, and what is wrong after the last."""

    rows: tuple[Row, ...]
    violations: tuple[Violation, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of violation, each once."""
        return tuple(dict.fromkeys(violation.kind for violation in self.violations))


def shortest_failure(graph: Graph) -> FailingSchedule | None:
    """The shortest way to a world that is wrong, or None if every end is right and can be reached."""
    wrong = _wrong(graph)
    if not wrong:
        return None
    way = _search(graph, frozenset(wrong))
    last = way[-1][0]
    if last in graph.traps:
        way, found = _with_circle(graph, way)
    else:
        found = wrong[last]
    rows = []
    for (before, _), (after, me) in pairwise(way):
        old, new = graph.worlds[before], graph.worlds[after]
        rows.append(Row(me, old.actors[me].at, _remark(old, new, me)))
    return FailingSchedule(tuple(rows), found)


def _wrong(graph: Graph) -> dict[int, tuple[Violation, ...]]:
    """Ends with violations, worlds in which harm was done, and worlds that no end can be reached from."""
    wrong = {index: violations(graph.worlds[index]) for index in graph.ends}
    for index in graph.traps:
        wrong[index] = (Violation("retry without end", ""),)
    for index, world in enumerate(graph.worlds):
        if world.harm and index not in wrong:
            wrong[index] = tuple(Violation(harm, HARMS[harm]) for harm in sorted(world.harm))
    return {index: found for index, found in wrong.items() if found}


def _with_circle(graph: Graph, way: Way) -> tuple[Way, tuple[Violation, ...]]:
    """Go on from a world without an end into a circle that nobody can leave, and once round."""
    lost = len(way) - 1
    circle = frozenset(index for index in _reach(graph, way[-1][0]) if _nobody_leaves(graph, index))
    way = way[:-1] + _search(graph, circle, way[-1])
    here = way[-1][0]
    once_round = min((_search(graph, frozenset({here}), (target, me)) for me, target in graph.edges[here]), key=len)
    text = f"after step {lost} no schedule ends; the last {len(once_round)} steps repeat for ever"
    return way + once_round, (Violation("retry without end", text),)


def _reach(graph: Graph, start: int) -> set[int]:
    pending, seen = [start], {start}
    while pending:
        fresh = {target for _, target in graph.edges[pending.pop()]} - seen
        seen |= fresh
        pending += fresh
    return seen


def _nobody_leaves(graph: Graph, index: int) -> bool:
    """Whether every world that can be reached from this one leads back to it."""
    return all(index in _reach(graph, other) for other in _reach(graph, index))


def _search(graph: Graph, targets: frozenset[int], start: Node = (0, NOTHING)) -> Way:
    """Dijkstra over (world, who was last) by (steps, changes of actor): the way from start to the nearest target."""
    best: dict[Node, tuple[int, int]] = {start: (0, 0)}
    came: dict[Node, Node] = {}
    heap = [(0, 0, start)]
    while heap:
        steps, changes, node = heapq.heappop(heap)
        if node[0] in targets:
            return _way(came, node)
        for me, target in graph.edges[node[0]]:
            cost = (steps + 1, changes + (me != node[1]))
            following = (target, me)
            if following not in best or cost < best[following]:
                best[following], came[following] = cost, node
                heapq.heappush(heap, (*cost, following))
    raise AssertionError("bug in guestmem: a world of the graph cannot be reached from its start")


def _way(came: dict[Node, Node], node: Node) -> Way:
    way = [node]
    while way[-1] in came:
        way.append(came[way[-1]])
    return way[::-1]


def _remark(old: World, new: World, me: int) -> str:
    """What the reader must know to follow the schedule."""
    before, after = old.actors[me], new.actors[me]
    if not after.at:
        return after.outcome
    match before.at:
        case "read-attribute":
            return "private" if after.private else "shared"
        case "sample-invalidations":
            return f"seq {after.seq}"
        case "invalidate-begin":
            return f"gfn [{new.invalidation[1]}, {new.invalidation[2]})"
        case "invalidate-end":
            return f"seq {new.seq}" if new.seq != old.seq else "finds no binding"
        case "get-page" if after.page != NOTHING:
            kind = "host page" if after.page >= HOST else "file page"
            return f"{kind} {after.page % HOST}"
        case "decide-level":
            return "huge" if after.order else "4K"
        case "map-leaf":
            leaf = next(leaf for leaf in new.leaves if leaf not in old.leaves or leaf.page == before.page)
            return f"gfn [{leaf.start}, {leaf.end})"
        case "recheck":
            return "stale" if after.at == "retry" else "not stale"
        case _:
            return ""
