"""``guestmem schema``: the JSON schemas of what guestmem reads and writes."""

from __future__ import annotations

import typer

from guestmem.errors import InputError

__all__ = ("schema",)


def schema(
    which: str = typer.Argument(
        "layout",
        metavar="[layout|check|host|recording]",
        help="guestmem's own layout, the --json of check or host, or a line of a recording.",
    ),
) -> None:
    """Print a JSON schema: of a layout (the default), of the answer of check or host, or of a recording's line."""
    from guestmem.report.check_json import check_schema
    from guestmem.report.json_text import json_text

    if which == "layout":
        from guestmem.layout.readers.own import schema as layout_schema

        typer.echo(json_text(layout_schema()))
    elif which == "check":
        typer.echo(json_text(check_schema()))
    elif which == "host":
        from guestmem.report.host_json import host_schema

        typer.echo(json_text(host_schema()))
    elif which == "recording":
        from guestmem.recordings.schema import schema as recording_schema

        typer.echo(json_text(recording_schema()))
    else:
        raise InputError(f"no schema '{which}'; there are layout, check, host and recording")
