"""``guestmem host``: what the VMs of this machine really got, and why."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from guestmem.cli import complete
from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.host.document import HostReport
    from guestmem.layout.findings import Finding

__all__ = ("EXAMPLES", "host")

EXAMPLES = """
Examples (as root):

    guestmem host

    guestmem host 4711

    guestmem host --save before.json --fail-on never && guestmem check before.json

    guestmem host --watch 5

Exit status: 0 nothing at or above --fail-on, 1 findings, 2 bad usage or input, 4 neither kernel memory nor KVM's
counters can be read here ('guestmem doctor' says why).
"""
_FAIL_ON = ("note", "warning", "error", "never")


def host(
    pid: int | None = typer.Argument(None, metavar="[PID]", min=1, help="One process: its VMs slot by slot."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout ('guestmem schema host')."),
    html: Path | None = typer.Option(None, "--html", metavar="FILE", help="Write one self-contained HTML page."),
    save: Path | None = typer.Option(
        None, "--save", metavar="FILE", help="Write the JSON object; check, rules, plan read it."
    ),
    watch: float | None = typer.Option(
        None, "--watch", metavar="SECONDS", min=0.1, help="Look again and again: what changes."
    ),
    fail_on: str = typer.Option(
        "warning", "--fail-on", metavar="LEVEL", autocompletion=complete.fail_on, help="note, warning, error or never."
    ),
    reader: str = typer.Option("auto", "--reader", metavar="NAME", help="How to read: auto, kcore or bpf."),
    every_space: bool = typer.Option(False, "--all", help="The slots of SMM's address space too."),
) -> None:
    """Show what every VM of this machine has mapped with 1G, 2M and 4K pages, what it lost, and why.

    Any VMM: nothing is asked of it and nothing is changed. The kernel's own page tables are read, through /proc/kcore
    or a small BPF program; memory that a guest never touched is neither mapped nor lost.
    """
    from guestmem.host.kernel import READERS
    from guestmem.host.machine import look_at_machine

    if fail_on not in _FAIL_ON:
        raise InputError(f"--fail-on {fail_on}: needed one of {', '.join(_FAIL_ON)}")
    if reader not in READERS:
        raise InputError(f"--reader {reader}: needed one of {', '.join(READERS)}")
    if watch is not None:
        if as_json or html is not None or save is not None:
            raise InputError("--watch prints tables: it goes with none of --json, --html and --save")
        _watch(pid, reader, watch)
    detailed = pid is not None or html is not None
    report = look_at_machine(pid, reader, every_space=every_space, strips=detailed)
    if pid is not None and not report.vms:
        raise InputError(f"process {pid} holds no VM, or may not be seen; 'guestmem host' lists the VMs")
    _write_files(report, html, save)
    if as_json:
        from guestmem.report.host_json import to_json

        typer.echo(to_json(report))
    else:
        _print(report, slots=pid is not None)
    raise typer.Exit(_status(report, fail_on))


def _watch(pid: int | None, reader: str, seconds: float) -> NoReturn:
    """Until interrupted: a table for each look, with what changed since the one before."""
    from guestmem.host.machine import look_at_machine
    from guestmem.report.console import console
    from guestmem.report.host_text import print_changes, print_host

    out = console()
    before = look_at_machine(pid, reader)
    print_host(out, before)
    while True:
        time.sleep(seconds)
        now = look_at_machine(pid, reader)
        out.print()
        print_changes(out, now, before)
        before = now


def _print(report: HostReport, *, slots: bool) -> None:
    from guestmem.report.console import console
    from guestmem.report.host_text import print_host, print_slots

    if slots and report.reader != "debugfs":
        print_slots(console(), report, _findings(report))
    else:
        print_host(console(), report)


def _findings(report: HostReport) -> dict[int, tuple[Finding, ...]]:
    """What check would say of each VM whose slots were read, by its place in the report."""
    from guestmem.layout.check import check
    from guestmem.layout.coverage import HostLimits
    from guestmem.layout.readers.host import to_layouts

    places = [index for index, vm in enumerate(report.vms) if vm.totals.size is not None]
    if not places:
        return {}
    layouts = to_layouts("host", report)
    return {place: check(layout, HostLimits()).findings for place, layout in zip(places, layouts, strict=True)}


def _write_files(report: HostReport, html: Path | None, save: Path | None) -> None:
    from guestmem.outfile import write_text

    if html is not None:
        from guestmem.report.host_html import to_html

        write_text(html, to_html(report, _findings(report)))
        typer.echo(f"wrote {html}", err=True)
    if save is not None:
        from guestmem.report.host_json import to_json

        write_text(save, to_json(report) + "\n")
        typer.echo(f"wrote {save}", err=True)


def _status(report: HostReport, fail_on: str) -> int:
    from guestmem.host.loss import severity_of

    severity = severity_of(report)
    return int(severity is not None and fail_on in _FAIL_ON[: _FAIL_ON.index(severity) + 1])
