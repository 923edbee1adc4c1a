"""``guestmem check``: which pages will this VM get, what is lost, why, and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli import complete, layouts
from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.layout.check import Checked
    from guestmem.layout.coverage import HostLimits
    from guestmem.layout.fleet import Fleet, FleetSums
    from guestmem.layout.observed import Observed

__all__ = ("EXAMPLES", "check")

EXAMPLES = """
Examples:

    guestmem check examples/layouts/qemu100-q35-10G-memfd.txt

    guestmem check --html report.html examples/layouts/libvirt-plain.xml examples/layouts/fc-1025M-hotplug.json

    guestmem check "qemu:-machine q35 -m 10G"

    guestmem check --observed examples/traces/kvm72-load.trace.dat.gz examples/traces/kvmload.toml

    guestmem check --profile next --page-size 1G examples/layouts/discussion.toml

Exit status: 0 nothing at or above --fail-on, 1 findings, 2 bad usage or input, 4 an optional part is missing.
"""
_ROWS = 40


def check(
    sources: list[str] = layouts.SOURCES,
    format: str = layouts.FORMAT,
    fail_on: str = typer.Option(
        "warning",
        "--fail-on",
        metavar="LEVEL",
        autocompletion=complete.fail_on,
        help="note, warning, error or never; 'unknown' never counts.",
    ),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout ('guestmem schema check')."),
    as_sarif: bool = typer.Option(False, "--sarif", help="A SARIF 2.1.0 log on stdout."),
    html: Path = typer.Option(None, "--html", metavar="FILE", help="Write one self-contained HTML page."),
    observed: Path | None = typer.Option(
        None, "--observed", metavar="TRACE", help="A kernel trace of the VM: what KVM really mapped, slot by slot."
    ),
    show_all: bool = typer.Option(False, "--all", help=f"Every VM, slot and finding, not the first {_ROWS}."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="The first megabytes and every note, too."),
    profile: str = typer.Option(
        "v7.3",
        "--profile",
        metavar="NAME",
        autocompletion=complete.kernels,
        help="v6.12, v6.18, v7.2, v7.3, v7.4 or next.",
    ),
    page_size: str = typer.Option(
        None, "--page-size", metavar="SIZE", help="Page size of guest_memfds, with --profile next."
    ),
    rule: str = typer.Option(
        None,
        "--rule",
        metavar="NAME",
        autocompletion=complete.rules,
        help="The alignment rule, or FILE.py:NAME, with --profile next.",
    ),
    geometry: str = layouts.GEOMETRY,
    thp: str = typer.Option("possible", "--thp", metavar="possible|never", help="How to count transparent huge pages."),
    hva: list[str] = layouts.HVA,
    hva_align: str = layouts.HVA_ALIGN,
    backing: list[str] = layouts.BACKING,
    attributes: str = layouts.ATTRIBUTES,
    firecracker: str = layouts.FIRECRACKER,
) -> None:
    """Say which pages VMs will get, what is lost and why, and what to change.

    Sources: QEMU monitor text and traces, libvirt XML, Cloud Hypervisor and Firecracker configs, strace logs, debugger
    dumps, guestmem layouts and recordings; recognised by content.
    """
    from guestmem.layout.check import check as judge
    from guestmem.layout.check import most_severe
    from guestmem.layout.findings import SEVERITIES

    if fail_on not in (*SEVERITIES, "never"):
        raise InputError(f"--fail-on {fail_on}: needed one of {', '.join(SEVERITIES)}, never")
    if as_json and as_sarif:
        raise InputError("--json and --sarif both write to stdout: choose one")
    host = layouts.host_of(profile, page_size, rule, geometry, thp)
    overrides = layouts.overrides_of(hva, hva_align, backing, attributes)
    found, fleets, unread = layouts.load_sources(sources, format, firecracker, overrides)
    if not (found or fleets):
        layouts.give_up(unread)
    if fleets and (as_sarif or html is not None):
        raise InputError(
            f"{fleets[0].source}: a fleet has no page and no SARIF log: use --json, or check its VMs singly"
        )
    checked = [judge(layout, host) for layout in found]
    seen = None if observed is None else _observed(observed, checked, fleets)
    sums = _judge_fleets(fleets, host)
    if html is not None:
        _write_html(html, checked, profile)
    if as_json:
        from guestmem.report.check_json import fleet_entry, to_json

        typer.echo(to_json(checked, host, profile, map(fleet_entry, sums), seen))
    elif as_sarif:
        from guestmem.report.check_sarif import to_sarif

        typer.echo(to_sarif(checked))
    else:
        _print(checked, sums, profile, rows=0 if show_all else _ROWS, verbose=verbose)
        if seen is not None:
            _print_observed(observed, checked[0], seen)
    if unread:
        layouts.give_up(unread)
    worst = most_severe([*(one.severity for one in checked), *(one.severity for one in sums)])
    raise typer.Exit(int(worst is not None and fail_on in SEVERITIES[: SEVERITIES.index(worst) + 1]))


def _observed(trace: Path, checked: list[Checked], fleets: list[Fleet]) -> Observed:
    from guestmem.layout.observed import compare_observed
    from guestmem.trace.faults import faults_of
    from guestmem.trace.source import read_trace

    if len(checked) != 1 or fleets:
        raise InputError(f"--observed {trace}: a trace is of one VM, and the sources have {len(checked)}")
    return compare_observed(checked[0].coverage, faults_of(str(trace), read_trace(trace)))


def _print_observed(trace: Path | None, checked: Checked, seen: Observed) -> None:
    from guestmem.report.console import console
    from guestmem.report.observed_text import print_observed

    print_observed(console(), str(trace), checked.coverage, seen)


def _judge_fleets(fleets: list[Fleet], host: HostLimits) -> list[FleetSums]:
    if not fleets:
        return []
    from guestmem.layout.fleet import check_fleet

    return [check_fleet(fleet, host) for fleet in fleets]


def _print(checked: list[Checked], fleets: list[FleetSums], profile: str, *, rows: int, verbose: bool) -> None:
    from guestmem.report.check_json import fleet_entry
    from guestmem.report.check_text import print_checked
    from guestmem.report.console import console
    from guestmem.report.fleet_text import print_fleet

    out = console()
    print_checked(out, checked, rows=rows, title=f"as kernel {profile} would map them", verbose=verbose)
    for one in fleets:
        print_fleet(out, fleet_entry(one))


def _write_html(path: Path, checked: list[Checked], profile: str) -> None:
    from guestmem.outfile import write_text
    from guestmem.report.check_html import to_html
    from guestmem.text import safe

    write_text(path, to_html(checked, profile))
    typer.echo(f"wrote {safe(str(path))}", err=True)
