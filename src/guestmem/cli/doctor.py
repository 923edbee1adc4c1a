"""``guestmem doctor``: what this host can do."""

from __future__ import annotations

import typer

__all__ = ("EXAMPLES", "doctor")

EXAMPLES = """
Examples:

    guestmem doctor

    guestmem doctor --json | jq '.findings[] | select(.state != "ok")'

Exit status: 0 nothing is missing, 1 something is.
"""


def doctor(as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout.")) -> None:
    """Say what this host can do: KVM, private memory, huge pages, the lab; with cause and remedy where it cannot.

    Everything is read or asked here and now, nothing is changed, and what cannot be read is reported as unknown.
    """
    from guestmem.doctor import Condition, examine
    from guestmem.report.doctor_text import doctor_lines
    from guestmem.report.json_text import json_text

    found = examine()
    typer.echo(
        json_text({"format": "guestmem-doctor/1", "findings": found}) if as_json else "\n".join(doctor_lines(found))
    )
    raise typer.Exit(1 if any(each.state is Condition.MISSING for each in found) else 0)
