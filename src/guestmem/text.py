"""How every report writes text of strangers and counts."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ("counted", "no_such", "percent", "safe", "utf8")


def safe(text: str) -> str:
    """Text from strangers for a terminal: control characters, which could be escape sequences, become question marks.

    >>> safe("a\\x1b[31mb")
    'a?[31mb'
    """
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def utf8(text: str) -> str:
    """A file name whose bytes are no UTF-8 as text that can be encoded: each such byte becomes U+FFFD.

    >>> utf8("a\\udcffb")
    'a\ufffdb'
    """
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def counted(count: int, one: str) -> str:
    """A number with its noun, which takes an s.

    >>> counted(1, "sequence"), counted(1182, "cause")
    ('1 sequence', '1,182 causes')
    """
    return f"{count:,} {one}" + "s" * (count != 1)


def no_such(what: str, name: str, names: Iterable[str], also: str = "") -> str:
    """That there is no thing of a name, which one may have been meant, and all that there are; also: what else can be.

    >>> no_such("fruit", "aple", ["apple", "pear"])
    "no fruit 'aple'; did you mean apple? there are apple, pear"
    >>> no_such("fruit", "x", ["apple", "pear"], "and FILE")
    "no fruit 'x'; there are apple, pear, and FILE"
    """
    from difflib import get_close_matches

    known = list(names)
    near = get_close_matches(name, known, 1)
    meant = f" did you mean {near[0]}?" if near else ""
    return f"no {what} {name!r};{meant} there are {', '.join([*known, *([also] if also else [])])}"


def percent(part: int, whole: int) -> str:
    """A share without false precision: 0 % and 100 % are exact.

    >>> percent(0, 10), percent(10, 10), percent(9999, 10000), percent(1, 2)
    ('0 %', '100 %', '>99 %', '50 %')
    """
    if whole == 0 or part in (0, whole):
        return "100 %" if whole and part == whole else "0 %"
    share = 100 * part / whole
    if share > 99:
        return ">99 %"
    return "<1 %" if share < 1 else f"{share:.0f} %"
