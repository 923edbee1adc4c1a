"""What is wrong with an input, in one line a person can act on.

Every reader raises LayoutError and nothing else for an input it cannot take: truncated, hostile or simply of another
kind. The line names the source, the place, the field, the value found, what was needed, and what to do. Values are
shortened and stripped of control characters, since they come from files of strangers.
"""

from __future__ import annotations

from guestmem.errors import InputError

__all__ = ("LayoutError", "printable")

_LINE_LIMIT = 1000
_DECIMAL_BITS = 128
_VALUE_LIMIT = 60  # characters of a stranger's value that are worth showing


def printable(value: object, limit: int = _VALUE_LIMIT) -> str:
    """The value on one line, without control characters, at most ``limit`` characters.

    >>> printable("a\\x1b[31mb")
    'a?[31mb'
    >>> printable(1 << 20000, 10)
    '0x10000000...'
    """
    if isinstance(value, int) and value.bit_length() > _DECIMAL_BITS:
        value = hex(value)  # Python refuses to write thousands of digits in decimal
    text = str(value[: limit + 1] if isinstance(value, (str, bytes)) else value)
    text = "".join(char if char.isprintable() else "?" for char in text[: limit + 1])
    return text if len(text) <= limit else text[:limit] + "..."


class LayoutError(InputError):
    """An input cannot be read as a layout.

    source is the file or live thing, line counts from 1 (0: the whole input), field and value say what was found,
    needed what would be right, remedy what to do.
    """

    def __init__(
        self, source: str, needed: str, *, line: int = 0, field: str = "", value: object = None, remedy: str = ""
    ) -> None:
        super().__init__(source, needed)
        self.source = source
        self.line = line
        self.field = field
        self.value = value
        self.needed = needed
        self.remedy = remedy

    def __str__(self) -> str:
        place = f"{printable(self.source, 200)}:{self.line}" if self.line else printable(self.source, 200)
        found = self.field
        if self.value is not None:
            value = printable(self.value)
            found = f"{found} {value}" if isinstance(self.value, int) else f"{found} '{value}'"
            found = found.strip()
        text = f"{place}: {found}: {self.needed}" if found else f"{place}: {self.needed}"
        # Texts of parsers quote the input, so the whole line is stripped once more.
        return printable(f"{text}; {self.remedy}" if self.remedy else text, _LINE_LIMIT)
