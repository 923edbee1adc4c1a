"""``guestmem doctor``: what this host can do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from guestmem.doctor import Finding

__all__ = ("EXAMPLES", "doctor")

EXAMPLES = """
Examples:

    guestmem doctor

    guestmem doctor --json | jq '.findings[] | select(.state != "ok")'

Exit status: 0 nothing is missing, 1 something is.
"""
_MARKS = {"ok": "ok", "limited": "less", "missing": "NO", "unknown": "?"}


def doctor(as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout.")) -> None:
    """Say what this host can do: KVM, private memory, huge pages, the lab; with cause and remedy where it cannot.

    Everything is read or asked here and now, nothing is changed, and what cannot be told is said to be unknown.
    """
    from guestmem.doctor import State, examine

    findings = examine()
    if as_json:
        from guestmem.report.json_text import json_text

        typer.echo(json_text({"findings": findings}))
    else:
        for finding in findings:
            for line in _lines(finding):
                typer.echo(line)
    raise typer.Exit(1 if any(finding.state is State.MISSING for finding in findings) else 0)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{_MARKS[finding.state]:<5}{finding.subject:<12} {finding.found}"
    if finding.cause:
        yield f"{'':<18}because: {finding.cause}"
    if finding.remedy:
        yield f"{'':<18}change:  {finding.remedy}"
