"""Lines and numbers of foreign text, bounded: the only way a reader takes a file apart.

A line longer than MAX_LINE cannot be a line of any format here, so it is refused instead of matched against a pattern.
Numbers are 0 to 2**64 - 1; a range that would pass 2**64 is refused where it is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from guestmem.duplicates import duplicate_key
from guestmem.layout.error import LayoutError, printable
from guestmem.units import U64_MAX

__all__ = ("MAX_LINE", "convert", "decode_json", "lines", "number")

MAX_LINE = 1 << 20  # bytes; the longest real line seen (an strace of cpuid entries with -v) is under 100 KB
_T = TypeVar("_T")
_PATH = re.compile(r" - at `(?:key in )?([^`]*)`")


def lines(source: str, data: bytes) -> Iterator[tuple[int, str]]:
    """Lines with their numbers from 1, without CR or LF; bytes that are not UTF-8 become replacement characters."""
    start, line = 0, 0
    while start < len(data):
        line += 1
        end = data.find(b"\n", start, start + MAX_LINE + 1)
        if end < 0:
            if len(data) - start > MAX_LINE:
                raise LayoutError(source, f"no line is longer than {MAX_LINE} bytes", line=line, field="line")
            end = len(data)
        yield line, data[start:end].decode("utf-8", "replace").rstrip("\r")
        start = end + 1


def number(source: str, text: str, base: int, *, line: int, field: str) -> int:
    """Parse an unsigned 64-bit number written in ``base``; a LayoutError names the place otherwise."""
    try:
        value = int(text, base) if len(text) <= 24 and text.isascii() and text.isalnum() else -1
    except ValueError:
        value = -1
    if not 0 <= value <= U64_MAX:
        raise LayoutError(source, "needed a number from 0 to 2**64 - 1", line=line, field=field, value=text)
    return value


def decode_json(source: str, data: bytes | str, type: type[_T], *, line: int = 0) -> _T:
    """Decode one JSON value of a type, whatever the bytes are; a LayoutError names the field that does not fit.

    Keys that the type does not know cost no memory.
    """
    try:
        value = msgspec.json.decode(data, type=type)
    except msgspec.ValidationError as error:
        raise _unfit(source, error, line) from None
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise LayoutError(source, f"needed JSON ({printable(error, 100)})", line=line) from None
    if (key := duplicate_key(data)) is not None:
        raise LayoutError(source, "needed each key once in an object", line=line, field="key", value=key)
    return value


def convert(source: str, value: Any, type: type[_T], *, line: int = 0) -> _T:
    """Give a decoded value its type; a LayoutError names the field that does not fit."""
    try:
        return msgspec.convert(value, type)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _unfit(source, error, line) from None


def _unfit(source: str, error: Exception, line: int) -> LayoutError:
    text = str(error)
    match = _PATH.search(text)
    field = match[1].removeprefix("$.") if match else ""
    return LayoutError(source, printable(_PATH.sub("", text), 120), line=line, field=field)
