"""``guestmem schema``: the JSON schemas of what guestmem reads and writes."""

from __future__ import annotations

import typer

__all__ = ("schema",)


def schema(
    which: str = typer.Argument(
        "layout", metavar="[layout|check|host]", help="guestmem's own layout, or the --json of check or host."
    ),
) -> None:
    """Print a JSON schema: of a layout (the default), or of the report of check --json or host --json."""
    from guestmem.report.as_json import check_schema
    from guestmem.report.json_text import json_text

    if which == "layout":
        from guestmem.layout.readers.own import schema as layout_schema

        typer.echo(json_text(layout_schema()))
    elif which == "check":
        typer.echo(json_text(check_schema()))
    elif which == "host":
        from guestmem.report.host_json import host_schema

        typer.echo(json_text(host_schema()))
    else:
        raise ValueError(f"no schema {which!r}; there are layout, check and host")
