"""How every report writes text of strangers and counts."""

from __future__ import annotations

__all__ = ("counted", "safe")


def safe(text: str) -> str:
    """Text from strangers for a terminal: control characters, which could be escape sequences, become question marks.

    >>> safe("a\\x1b[31mb")
    'a?[31mb'
    """
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)


def counted(count: int, one: str) -> str:
    """A number with its noun, which takes an s.

    >>> counted(1, "sequence"), counted(1182, "cause")
    ('1 sequence', '1,182 causes')
    """
    return f"{count:,} {one}" + "s" * (count != 1)
