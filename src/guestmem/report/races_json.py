"""The JSON form of ``guestmem prove races``."""

from __future__ import annotations

from typing import Any

from guestmem.races.proof import Exploration, Races
from guestmem.report.json_text import json_text

__all__ = ("races_json",)


def races_json(races: Races) -> str:
    """Everything, as one object."""
    value = {
        "holds": races.holds,
        "scenarios": [_to_dict(one) for one in races.sound],
        "mutations": [
            {
                "name": one.mutation.name,
                "story": one.mutation.explanation,
                "found": one.found,
                **_to_dict(one.exploration),
            }
            for one in races.mutations
        ],
        "linux-6.12": [_to_dict(one) for one in races.released],
    }
    return json_text(value)


def _to_dict(one: Exploration) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scenario": one.scenario.name,
        "actors": list(one.scenario.labels),
        "verdict": one.verdict,
        "states": one.worlds,
        "steps": one.steps,
        "interleavings": one.interleavings,
        "ends": one.ends,
        "outcomes": [list(ways) for ways in one.outcomes],
    }
    if one.schedule is not None:
        found["violations"] = [{"kind": each.kind, "text": each.text} for each in one.schedule.violations]
        rows = one.schedule.rows
        found["schedule"] = [{"actor": row.actor, "step": row.step, "remark": row.remark} for row in rows]
    return found
