"""Arguments and outcomes as people write them on a line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guestmem.recordings.difference import Group

__all__ = ("group_values", "plain", "trace", "words")


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


def trace(group: Group, a: str, b: str) -> Iterator[str]:
    """A group of differences as lines: the cause, a recording one can paste, and both outcomes."""
    from guestmem.recordings.record import lines_of

    cause, smallest = group.cause, group.smallest
    check = f" [{cause.check}]" if cause.check else ""
    listed = f", known as {cause.divergence}" if cause.divergence else ""
    often = f"{group.count} sequence{'s' if group.count > 1 else ''}"
    yield f"{cause.op}: {a} {cause.a}, {b} {cause.b}{check}{listed}; {often}, smallest {plain(smallest.begin.seq)}"
    for line in lines_of(smallest.begin, smallest.operations):
        yield f"    {line}"
    touch = "" if smallest.touch is None else f" of touch {smallest.touch}"
    width = max(len(a), len(b))
    yield f"  {a:<{width}}{touch}  {words(smallest.a)}"
    yield f"  {b:<{width}}{touch}  {words(smallest.b)}"
    if smallest.reason:
        yield f"  decided  {plain(smallest.reason)}"


def group_values(group: Group) -> dict[str, object]:
    """A group of differences as plain values, for JSON."""
    import msgspec

    from guestmem.recordings.record import lines_of

    smallest = group.smallest
    return {
        "cause": group.cause,
        "sequences": group.count,
        "recording": [msgspec.Raw(line.encode()) for line in lines_of(smallest.begin, smallest.operations)],
        "touch": smallest.touch,
        "a": smallest.a,
        "b": smallest.b,
        "reason": smallest.reason,
    }
