"""A key that a JSON text gives twice: decoders take the last one and say nothing."""

from __future__ import annotations

import json
from typing import Any

import msgspec

__all__ = ("duplicate_key",)


class _DuplicateError(Exception):
    """Ends the search; the argument is the key."""


def _look(pairs: list[tuple[str, Any]]) -> None:
    """Keep nothing of an object but an error."""
    if len(dict(pairs)) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateError(key)
            seen.add(key)


# Of a number nobody asks the value; its length costs neither a call of Python nor the digits' conversion.
_decode = json.JSONDecoder(object_pairs_hook=_look, parse_int=len, parse_float=len).decode


_FEW = 1 << 16  # bytes; a text that is decoded without a type takes about 60 times its size


def _has_all_keys_once(data: bytes) -> bool:
    """Whether no object lost a key when it was decoded; False also for what cannot be told this way.

    Each key brings a colon. Where nothing is escaped, the colons within strings are the same before and after.
    """
    if len(data) > _FEW or b"\\" in data:
        return False
    try:
        return msgspec.json.encode(msgspec.json.decode(data)).count(b":") == data.count(b":")
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError):
        return False


def duplicate_key(data: bytes | str) -> str | None:
    """The first key that an object of the text has twice; None also for what is not JSON.

    >>> duplicate_key(b'{"slots": [{"gpa": 0, "gpa": 4096}]}')
    'gpa'
    """
    try:
        if _has_all_keys_once(data if isinstance(data, bytes) else data.encode()):
            return None
        _decode(data.decode() if isinstance(data, bytes) else data)
    except _DuplicateError as found:
        return str(found)
    except (ValueError, RecursionError):
        return None
    return None
