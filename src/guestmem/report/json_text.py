"""JSON as every command writes it: the one encoder of values, dataclasses and msgspec structures."""

from __future__ import annotations

from typing import Any

import msgspec

from guestmem.text import utf8

__all__ = ("json_text",)


def json_text(value: object) -> str:
    """A typed value as JSON, indented by two spaces; file names that are no UTF-8 as ``text.utf8`` has them.

    >>> print(json_text({"slots": 2}))
    {
      "slots": 2
    }
    """
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(_utf8(msgspec.to_builtins(value)))
    return msgspec.json.format(encoded, indent=2).decode()


def _utf8(value: Any) -> Any:
    if isinstance(value, str):
        return utf8(value)
    if isinstance(value, dict):
        return {_utf8(key): _utf8(one) for key, one in value.items()}
    return [_utf8(one) for one in value] if isinstance(value, list | tuple) else value
