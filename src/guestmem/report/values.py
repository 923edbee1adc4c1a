"""Arguments, outcomes and differences of recorded operations as people write them on a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from guestmem.recordings.diff import Group
from guestmem.recordings.writer import lines_of
from guestmem.text import counted, safe

__all__ = ("causes_text", "words")


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
    return safe(str(value))


def causes_text(groups: list[Group], a: str, b: str) -> Iterator[str]:
    """Groups of differences, numbered: the cause, a recording that can be pasted, and both outcomes."""
    for number, group in enumerate(groups, 1):
        for index, line in enumerate(_trace(group, a, b)):
            yield f"{number}. {line}" if index == 0 else line
        yield ""


def _trace(group: Group, a: str, b: str) -> Iterator[str]:
    cause, smallest = group.cause, group.smallest
    check = f" [{cause.check}]" if cause.check else ""
    often = counted(group.count, "sequence")
    yield f"{cause.op}: {a} {cause.a}, {b} {cause.b}{check}; {often}, smallest {safe(smallest.begin.seq)}"
    for line in lines_of(smallest.begin, smallest.operations):
        yield f"    {line}"
    touch = "" if smallest.touch is None else f" of touch {smallest.touch}"
    width = max(len(a), len(b))
    yield f"  {a:<{width}}{touch}  {words(smallest.a)}"
    yield f"  {b:<{width}}{touch}  {words(smallest.b)}"
    if smallest.reason:
        yield f"  decided  {safe(smallest.reason)}"
