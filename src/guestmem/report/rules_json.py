"""The JSON form of ``guestmem rules``: every rule against every layout and packing."""

from __future__ import annotations

import msgspec

from guestmem.layout.bound import RuleVerdict, Verdicts
from guestmem.layout.coverage import SlotCoverage
from guestmem.report.json_text import json_text
from guestmem.units import format_size

__all__ = ("to_json",)


class SlotVerdict(msgspec.Struct):
    """One slot under one rule: why it is refused (null: accepted), and bytes by level."""

    refused: str | None
    levels: dict[str, int]


class RuleEntry(msgspec.Struct):
    """One rule against one layout."""

    rule: str
    author: str
    date: str
    statement: str
    accepted: int
    refused: int
    levels: dict[str, int]
    slots: list[SlotVerdict]


class BoundSlot(msgspec.Struct):
    """A slot as it was bound for the comparison."""

    gpa: str
    size: int
    region: str
    file: str | None
    offset: str


class VerdictsEntry(msgspec.Struct):
    """Every rule against one layout in one packing; best is what no rule can exceed."""

    source: str
    packing: str
    page_size: int
    slots: list[BoundSlot]
    best: dict[str, int]
    rules: list[RuleEntry]


class RulesReport(msgspec.Struct):
    """The answer of guestmem rules."""

    sources: list[VerdictsEntry]
    format: str = "guestmem-rules/1"


def to_json(verdicts: list[Verdicts]) -> str:
    """The report as one JSON document."""
    return json_text(RulesReport([_entry(one) for one in verdicts]))


def _entry(one: Verdicts) -> VerdictsEntry:
    slots = [
        BoundSlot(f"{slot.gpa:#x}", slot.size, slot.region, slot.file, f"{slot.offset or 0:#x}")
        for slot in one.layout.slots
    ]
    best = _levels(one.geometry.page_sizes, one.best)
    rules = [_rule(rule) for rule in one.rules]
    return VerdictsEntry(one.layout.source, one.packing, one.page_size, slots, best, rules)


def _rule(verdict: RuleVerdict) -> RuleEntry:
    rule, coverage = verdict.rule, verdict.coverage
    slots = [_slot(why, item) for why, item in zip(verdict.refusals, coverage.slots, strict=True)]
    return RuleEntry(
        rule.name,
        rule.author,
        rule.date,
        rule.statement,
        len(slots) - verdict.refused,
        verdict.refused,
        _levels(coverage.host.sizes, coverage.mapped),
        slots,
    )


def _slot(why: str | None, item: SlotCoverage) -> SlotVerdict:
    return SlotVerdict(why, _levels(item.sizes, item.mapped))


def _levels(sizes: tuple[int, ...], mapped: tuple[int, ...]) -> dict[str, int]:
    return {format_size(size): value for size, value in zip(sizes, mapped, strict=True)}
