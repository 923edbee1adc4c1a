"""A key that a JSON text gives twice: decoders take the last one and say nothing."""

from __future__ import annotations

import json
from typing import Any

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


def duplicate_key(data: bytes | str) -> str | None:
    """The first key that an object of the text has twice; None also for what is not JSON.

    >>> duplicate_key(b'{"slots": [{"gpa": 0, "gpa": 4096}]}')
    'gpa'
    """
    try:
        _decode(data.decode() if isinstance(data, bytes) else data)
    except _DuplicateError as found:
        return str(found)
    except (ValueError, RecursionError):
        return None
    return None
