"""``guestmem trace``: what KVM did to the pages of VMs over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from guestmem.trace.summary import TraceSummary

__all__ = ("EXAMPLES", "app")

EXAMPLES = """
Examples:

    guestmem trace report examples/traces/kvm72-load.trace.dat.gz

    guestmem trace report --html trace.html examples/traces/kvm72-load.trace.dat.gz

    guestmem trace report --json examples/traces/kvm72-story-fprobe.txt

Exit status: 0, 2 bad usage or input.
"""

app = typer.Typer(help="What KVM did to the pages of VMs over time, from kernel traces.", no_args_is_help=True)


@app.callback()
def _trace() -> None:
    """What KVM did to the pages of VMs over time, from kernel traces."""


@app.command("report", epilog=EXAMPLES)
def report(
    trace: Path = typer.Argument(
        ..., metavar="FILE", help="trace.dat (version 6), or text of trace-cmd, tracefs or perf script; gzip too."
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    html: Path | None = typer.Option(None, "--html", metavar="FILE", help="Write one self-contained HTML page."),
) -> None:
    """Add up a trace: leaves over time, faults by slot, level and cause, splits, zaps by whom.

    Leaves are rebuilt from the changes of the tables, and equal KVM's own counters where every change is there.
    """
    from guestmem.report.console import console
    from guestmem.report.trace_json import trace_json
    from guestmem.report.trace_text import print_trace
    from guestmem.trace.source import read_trace
    from guestmem.trace.summary import summarise

    found = summarise(read_trace(trace))
    if html is not None:
        _write_html(html, str(trace), found)
    if as_json:
        typer.echo(trace_json(str(trace), found))
    else:
        print_trace(console(), str(trace), found)


def _write_html(path: Path, name: str, found: TraceSummary) -> None:
    from guestmem.outfile import write_text
    from guestmem.report.trace_html import to_html
    from guestmem.text import safe

    write_text(path, to_html(name, found))
    typer.echo(f"wrote {safe(str(path))}", err=True)
