"""``guestmem kernels`` as text, as JSON, as a page of the documentation, and as one of HTML to search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.text import Text

from guestmem.recordings.matrix import AnswerRow, Matrix
from guestmem.report.console import columns, print_stripped
from guestmem.report.json_text import json_text
from guestmem.report.values import words
from guestmem.text import counted, safe

__all__ = ("kernels_html", "kernels_json", "kernels_markdown", "print_kernels")

# By check: the version since when, and the subject of the commit, where it is known.
CHANGES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {"binding-in-file": ("7.2", "KVM: guest_memfd: Use unsigned offsets")}
)


def print_kernels(out: Console, matrix: Matrix) -> None:
    """A table, and the sum."""
    table = columns("call", *matrix.kernels, "calls", "check", "example", right=("calls",), wide=("example",))
    for row in matrix.rows:
        cells = (row.op, *(answer or "-" for answer in row.answers), str(row.count), row.check or "-", _example(row))
        table.add_row(*(Text(safe(cell)) for cell in cells))
    print_stripped(out, table)
    print_stripped(out, Text(f"\n{_sum(matrix)}"))


def kernels_json(matrix: Matrix) -> str:
    """One object; an answer of null is that of a kernel that was not asked."""
    rows = [
        {
            **msgspec.to_builtins(row),
            "answers": {name: answer or None for name, answer in zip(matrix.kernels, row.answers, strict=True)},
        }
        for row in matrix.rows
    ]
    return json_text(
        {
            "format": "guestmem-kernels/1",
            "kernels": matrix.kernels,
            "sequences": matrix.sequences,
            "operations": matrix.operations,
            "rows": rows,
        }
    )


def kernels_html(matrix: Matrix) -> str:
    """One file, no network; the script only searches."""
    from guestmem.report.check_html import page

    sections = [
        (op, [_cells(row) for row in matrix.rows if row.op == op])
        for op in dict.fromkeys(row.op for row in matrix.rows)
    ]
    return page("kernels.html.j2", kernels=matrix.kernels, sum=_sum(matrix), rows=len(matrix.rows), sections=sections)


def _cells(row: AnswerRow) -> dict[str, Any]:
    answers = [safe(answer or "-") for answer in row.answers]
    return {"answers": answers, "count": row.count, "decides": _decides(row), "example": safe(_example(row))}


def _decides(row: AnswerRow) -> str:
    changes = [f'changed by "{subject}" ({since})' for check, (since, subject) in CHANGES.items() if check in row.check]
    return "; ".join([f"{row.check}: {row.rule}", *changes]) if row.check else "-"


def kernels_markdown(matrix: Matrix, command: str) -> str:
    """A page: one section for each operation."""
    return "\n".join(_page(matrix, command)) + "\n"


def _page(matrix: Matrix, command: str) -> Iterator[str]:
    yield "# What each kernel answers"
    yield ""
    yield f"Made by `{command}`. {_sum(matrix)}"
    yield ""
    yield "A row is a kind of call that not all of these kernels answer alike, with its first example; where no row is,"
    yield "they agreed. Kernels are compared only in the same state: one that has refused what the last one did, or the"
    yield "other way round, is not asked any more in that sequence (-). What decides is the model's check and its rule"
    yield "([kernel-behaviour.md](kernel-behaviour.md))."
    for op in dict.fromkeys(row.op for row in matrix.rows):
        yield from ("", f"## {op}", "", f"| {' | '.join((*matrix.kernels, 'calls', 'what decides', 'example'))} |")
        yield f"| {' | '.join(['---'] * len(matrix.kernels))} | ---: | --- | --- |"
        for row in matrix.rows:
            if row.op == op:
                cells = (
                    *(answer or "-" for answer in row.answers),
                    str(row.count),
                    _decides(row),
                    f"`{_example(row)}`",
                )
                yield f"| {' | '.join(safe(cell).replace('|', '/') for cell in cells)} |"


def _example(row: AnswerRow) -> str:
    return f"{row.sequence}, operation {row.index}: {words(row.arguments)}"


def _sum(matrix: Matrix) -> str:
    asked = f"{counted(matrix.operations, 'operation')} of {counted(matrix.sequences, 'sequence')}"
    differing = sum(row.count for row in matrix.rows)
    rows = f"{counted(differing, 'call')} differ, {counted(len(matrix.rows), 'kind')}"
    return f"{asked} on {', '.join(matrix.kernels)}: {rows}."
