"""The same operations on two backends: the first difference of a sequence, and differences grouped by cause.

Only the first matters: what comes after it may be its consequence. So does a known divergence, if it lasts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from guestmem.recordings import vocabulary as v
from guestmem.recordings.compare import Verdict, seen, verdict
from guestmem.recordings.divergences import History
from guestmem.recordings.runner import Outcome

__all__ = ("Cause", "Difference", "Group", "Pair", "ended", "first_difference", "grouped")


@dataclass(frozen=True, slots=True)
class Cause:
    """What makes two differences the same one: the operation, how it ended on each side, and the model's check."""

    op: str
    a: str
    b: str
    check: str
    divergence: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference of a sequence: up to which operation it goes, where, and what each side gave."""

    begin: v.Begin
    operations: tuple[v.Operation, ...]  # the last one differs
    touch: int | None
    a: Any
    b: Any
    cause: Cause
    reason: str = ""


@dataclass(slots=True)
class Pair:
    """The comparison of one sequence. ``operations`` counts guest touches one by one, up to the first difference."""

    operations: int = 0
    skipped: int = 0
    known: list[Difference] = field(default_factory=list)
    new: Difference | None = None


@dataclass(slots=True)
class Group:
    """Differences of one cause; ``smallest`` needs the fewest operations."""

    cause: Cause
    smallest: Difference
    count: int = 1


def first_difference(
    begin: v.Begin, operations: Sequence[v.Operation], a: Iterable[Outcome], b: Iterable[Outcome]
) -> Pair:
    """Compare outcome by outcome until one differs by what no listed divergence explains."""
    pair = Pair()
    for index, (operation, on_a, on_b) in enumerate(zip(operations, a, b, strict=False)):
        if "skipped" in on_a.observed or "skipped" in on_b.observed:
            pair.skipped += 1
            continue
        for compared in _verdicts(operation, on_a, on_b, History(begin, operations, index)):
            pair.operations += 1
            if compared.agreed:
                continue
            difference = _difference(begin, operations[: index + 1], compared, on_a, on_b)
            if compared.divergence is None:
                pair.new = difference
                return pair
            pair.known.append(difference)
            if compared.divergence.lasting:
                return pair
    return pair


def grouped(differences: Iterable[Difference]) -> list[Group]:
    """One group for each cause, the one with the smallest example first."""
    groups: dict[Cause, Group] = {}
    for difference in differences:
        group = groups.get(difference.cause)
        if group is None:
            groups[difference.cause] = Group(difference.cause, difference)
            continue
        group.count += 1
        if len(difference.operations) < len(group.smallest.operations):
            group.smallest = difference
    return sorted(groups.values(), key=lambda group: len(group.smallest.operations))


def ended(got: Any) -> str:
    """How an operation ended, in a few words: "ok", an errno, a signal, an exit of the guest."""
    if isinstance(got, list):
        return " ".join(str(got[0][key]) for key in ("exit", "errno") if key in got[0])
    for key, words in _WORDS.items():
        if key in got:
            return words
    return str(got.get("errno") or got.get("signal") or "ok")


_WORDS = {
    "skipped": "skipped",
    "not_issued": "not issued",
    "unexpected_exit": "unexpected exit",
    "process_ended": "process ended",
}


def _verdicts(operation: v.Operation, a: Outcome, b: Outcome, before: History) -> Iterable[Verdict]:
    parts_a, parts_b = list(seen(operation, a)), list(seen(operation, b))
    if len(parts_a) != len(parts_b):  # one side ran no guest at all: the whole is what can be compared
        whole = [{"result": each.result, "errno": each.errno, **each.observed} for each in (a, b)]
        parts_a, parts_b = [(None, whole[0])], [(None, whole[1])]
        if whole[0] == whole[1]:
            parts_a = [(None, {**whole[0], "exits": "none" if a.exits is None else "some"})]
    for (touch, got_a), (_, got_b) in zip(parts_a, parts_b, strict=True):
        yield verdict(operation, touch, got_a, got_b, b, before=before)


def _difference(
    begin: v.Begin, operations: Sequence[v.Operation], compared: Verdict, a: Outcome, b: Outcome
) -> Difference:
    op = str(compared.operation.__struct_config__.tag) if compared.touch is None else "touch"
    ended_a, ended_b = ended(compared.recorded), ended(compared.got)
    if ended_a == ended_b:
        ended_a, ended_b = _told_apart(ended_a, compared.recorded, compared.got)
    divergence = compared.divergence.name if compared.divergence else ""
    cause = Cause(op, ended_a, ended_b, a.check or b.check, divergence)
    reason = a.reason if a.check or not b.reason else b.reason
    return Difference(begin, tuple(operations), compared.touch, compared.recorded, compared.got, cause, reason)


def _told_apart(words: str, a: Any, b: Any) -> tuple[str, str]:
    """Both ended alike, so the cause is which of the observed values differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        names = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    elif len(a) != len(b):
        names = ["number of exits"]
    else:
        names = sorted(
            {name for x, y in zip(a, b, strict=True) for name in x.keys() | y.keys() if x.get(name) != y.get(name)}
        )
    return words, f"{words}, other {', '.join(names)}"
