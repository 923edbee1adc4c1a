"""Arguments and outcomes as people write them on a line."""

from __future__ import annotations

from typing import Any

__all__ = ("plain", "words")


def words(value: Any) -> str:
    """name=value pairs; whole numbers above 9 in hex.

    >>> words({"gpa": 4096, "rw": "r", "errno": None, "userspace_addr": {"buf": "A"}})
    'gpa=0x1000 rw=r userspace_addr={buf=A}'
    """
    if isinstance(value, dict):
        pairs = {name: f"{{{words(item)}}}" if isinstance(item, dict) else words(item) for name, item in value.items()}
        return " ".join(f"{name}={pairs[name]}" for name, item in value.items() if item is not None) or "ok"
    if isinstance(value, list):
        return ", then ".join(words(item) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 9:
        return hex(value)
    return plain(str(value))


def plain(text: str) -> str:
    """Text from a recording as a line of the terminal: what is not printable is written as an escape.

    >>> plain("vm0"), plain("a\\x1b[2J")
    ('vm0', "'a\\\\x1b[2J'")
    """
    return text if text.isprintable() else repr(text)
