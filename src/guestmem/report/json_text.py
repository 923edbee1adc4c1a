"""JSON as every command writes it: the one encoder of values, dataclasses and msgspec structures."""

from __future__ import annotations

import msgspec

__all__ = ("json_text",)


def json_text(value: object) -> str:
    """A typed value as JSON, indented by two spaces.

    >>> print(json_text({"slots": 2}))
    {
      "slots": 2
    }
    """
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
