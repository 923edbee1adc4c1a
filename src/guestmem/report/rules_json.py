"""The JSON form of ``guestmem rules``: every rule against every layout and packing.

``slots`` of a layout are as they were bound for the comparison, and those of a rule stand in the same order: why the
rule refuses each (null: accepted), and bytes by level. ``best`` is what no rule can exceed.
"""

from __future__ import annotations

from typing import Any

from guestmem.layout.bound import RuleVerdict, Verdicts
from guestmem.report.json_text import json_text
from guestmem.report.words import by_level

__all__ = ("to_json",)


def to_json(verdicts: list[Verdicts]) -> str:
    """The report as one JSON document."""
    return json_text({"sources": list(map(_source, verdicts)), "format": "guestmem-rules/1"})


def _source(one: Verdicts) -> dict[str, Any]:
    return {
        "source": one.layout.source,
        "packing": one.packing,
        "page_size": one.page_size,
        "slots": [
            {
                "gpa": f"{slot.gpa:#x}",
                "size": slot.size,
                "region": slot.region,
                "file": slot.file,
                "offset": f"{slot.offset or 0:#x}",
            }
            for slot in one.layout.slots
        ],
        "best": by_level(one.geometry.page_sizes, one.best),
        "rules": list(map(_rule, one.rules)),
    }


def _rule(verdict: RuleVerdict) -> dict[str, Any]:
    rule, coverage = verdict.rule, verdict.coverage
    return {
        "rule": rule.name,
        "author": rule.author,
        "date": rule.date,
        "statement": rule.statement,
        "accepted": len(verdict.refusals) - verdict.refused,
        "refused": verdict.refused,
        "levels": by_level(coverage.host.sizes, coverage.mapped),
        "slots": [
            {"refused": why, "levels": by_level(item.sizes, item.mapped)}
            for why, item in zip(verdict.refusals, coverage.slots, strict=True)
        ],
    }
