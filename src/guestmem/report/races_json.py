"""The JSON form of ``guestmem prove races``."""

from __future__ import annotations

from typing import Any

from guestmem.races.proof import Exploration, Races
from guestmem.report.json_text import json_text

__all__ = ("races_json",)


def races_json(races: Races) -> str:
    """Everything, as one object."""
    value = {
        "format": "guestmem-races/1",
        "holds": races.holds,
        "scenarios": list(map(_to_dict, races.sound)),
        "mutations": [
            {"name": one.mutation.name, "story": one.mutation.explanation, "found": one.found}
            | _to_dict(one.exploration)
            for one in races.mutations
        ],
        "linux-6.12": list(map(_to_dict, races.released)),
    }
    return json_text(value)


def _to_dict(one: Exploration) -> dict[str, Any]:
    found: dict[str, Any] = {
        "scenario": one.scenario.name,
        "actors": one.scenario.labels,
        "verdict": one.verdict,
        "states": one.worlds,
        "steps": one.steps,
        "interleavings": one.interleavings,
        "ends": one.ends,
        "outcomes": one.outcomes,
    }
    if one.schedule is not None:
        found |= {"violations": one.schedule.violations, "schedule": one.schedule.rows}
    return found
