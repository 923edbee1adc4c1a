"""The terminal that text is written to."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Literal

from rich.console import Console, RenderableType
from rich.table import Table

__all__ = ("columns", "console", "print_stripped")


def console(*, plain_width: int = 120) -> Console:
    """Standard output, as wide as COLUMNS says, else as the terminal; a pipe gets ``plain_width`` and no colour."""
    out = Console(highlight=False, soft_wrap=False)
    if out.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return out
    return Console(highlight=False, width=plain_width)


def print_stripped(out: Console, what: RenderableType) -> None:
    """Print without the blanks that tables and padding leave at the ends of lines."""
    with out.capture() as capture:
        out.print(what)
    for line in capture.get().splitlines():
        out.file.write(line.rstrip(" ") + "\n")


def columns(*names: str, right: Collection[str] = (), wide: Collection[str] = (), header: bool = True) -> Table:
    """A table without lines, with these columns; those in ``right`` are numbers, those in ``wide`` fold."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=header)
    for name in names:
        justify: Literal["right", "left"] = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=name not in wide)
    return table
