"""The JSON schema of one line of a recording: ``guestmem schema recording``."""

from __future__ import annotations

from typing import Any

import msgspec

from guestmem.recordings.vocabulary import Line
from guestmem.units import U64_MAX

__all__ = ("schema",)


def schema() -> dict[str, Any]:
    """The schema, with the upper bound of unsigned numbers, which the reader checks and msgspec cannot state."""
    made = msgspec.json.schema(Line)
    _bound(made)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of a guestmem recording",
        "description": "The start of a sequence, or one operation with its arguments and what was observed.",
        **made,
    }


def _bound(node: Any) -> None:
    if isinstance(node, list):
        for item in node:
            _bound(item)
    elif isinstance(node, dict):
        if node.get("minimum") == 0 and "maximum" not in node:
            node["maximum"] = U64_MAX
        for value in node.values():
            _bound(value)
