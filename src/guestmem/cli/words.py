"""Arguments and outcomes as people write them on a line."""

from __future__ import annotations

from typing import Any

__all__ = ("words",)


def words(value: Any) -> str:
    """name=value pairs; whole numbers above 9 in hex.

    >>> words({"gpa": 4096, "rw": "r", "errno": None})
    'gpa=0x1000 rw=r'
    """
    if isinstance(value, dict):
        return " ".join(f"{name}={words(item)}" for name, item in value.items() if item is not None) or "ok"
    if isinstance(value, list):
        return ", then ".join(words(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 9:
        return hex(value)
    return str(value)
