"""``guestmem schema``: the JSON schemas of what guestmem reads and writes."""

from __future__ import annotations

import typer

__all__ = ("schema",)


def schema(
    which: str = typer.Argument("layout", metavar="[layout|check]", help="guestmem's own layout, or check's --json."),
) -> None:
    """Print a JSON schema: of a layout (the default), or of the report of check --json."""
    from guestmem.report.check_json import check_schema
    from guestmem.report.json_text import json_text

    if which == "layout":
        from guestmem.layout.readers.own import schema as layout_schema

        typer.echo(json_text(layout_schema()))
    elif which == "check":
        typer.echo(json_text(check_schema()))
    else:
        raise ValueError(f"no schema '{which}'; there are layout and check")
