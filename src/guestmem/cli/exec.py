"""``guestmem exec``: run a program with the model as its /dev/kvm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guestmem.cli import complete
from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.exec import OperationListener, Unserved
    from guestmem.exec.recording import Recording
    from guestmem.exec.refusals import Refusal
    from guestmem.model.profiles import Profile

__all__ = ("EXAMPLES", "exec_")

EXAMPLES = """
Examples:

    guestmem exec -- ./guest_memfd_test

    guestmem exec --profile v6.18 --stats -- ./private_mem_conversions_test -n 2

    guestmem exec --explain --record calls.jsonl -- ./my-vmm-tests

    guestmem exec --profile next --in-place off --page-size 2M -- ./private_mem_conversions_test

Exit status: the program's, 128 + the signal that killed it, 127 if there is none. Else 2 bad usage, 4 something is
missing here and the message says what.

The program is not confined: the kernel does every call that is not for KVM. Its guest code runs in Unicorn, which is no
sandbox either.
"""


def exec_(
    command: list[str] = typer.Argument(..., metavar="PROGRAM ARGS..."),
    profile: str = typer.Option(
        "v7.3",
        "--profile",
        metavar="NAME",
        autocompletion=complete.kernels,
        help="v6.12, v6.18, v7.2, v7.3, v7.4 or next.",
    ),
    in_place: str = typer.Option(
        None, "--in-place", metavar="on|off", help="From v7.4 on: attributes belong to files (on) or to VMs (off)."
    ),
    page_size: str = typer.Option(
        None, "--page-size", metavar="SIZE", help="2M or 1G: every guest_memfd whose size allows it, with profile next."
    ),
    record: Path = typer.Option(None, "--record", metavar="FILE", help="The calls as a recording; gzip for *.gz."),
    explain: bool = typer.Option(
        False, "--explain", help="Each refused call on stderr: why, and other kernels' answer."
    ),
    strict: bool = typer.Option(False, "--strict", help="End the program at the first ioctl that is not served."),
    stats: bool = typer.Option(False, "--stats", help="At the end: calls, mappings, guest code, on stderr."),
) -> None:
    """Run a program with the model as its /dev/kvm: no KVM, no root; static or dynamic, threads, fork and exec.

    An ioctl that is not served is one line on stderr, then the error of an unknown ioctl.
    """
    import shlex
    import time

    from guestmem.exec import Options, run
    from guestmem.model.profiles import kernel_named
    from guestmem.report.exec_text import recorded_line, refusal_lines, stats_lines, summary_lines, unserved_line

    def say(unserved: Unserved) -> None:
        typer.echo(unserved_line(unserved), err=True)

    def tell(refusal: Refusal) -> None:
        for line in refusal_lines(refusal):
            typer.echo(line, err=True)

    chosen = kernel_named(profile)
    wanted = _in_place(in_place, chosen)
    recording = _recording(record, shlex.join(command), chosen, wanted) if record else None

    def listeners(group: int) -> list[OperationListener]:
        heard: list[OperationListener] = [] if recording is None else [recording.spool(group)]
        return [*heard, _refusals(group, chosen, tell)] if explain else heard

    options = Options(
        profile=chosen,
        machine=None if wanted is None else chosen.machine.converting(in_place=wanted),
        page_size=_size(page_size, huge=chosen.huge),
        strict=strict,
        listeners=listeners,
        on_unserved=say,
    )
    start = time.perf_counter()
    report = run(command, options)
    for line in summary_lines(report.totals):
        typer.echo(line, err=True)
    if recording is not None:
        typer.echo(recorded_line(recording.path, *recording.write(), report.totals), err=True)
    if stats:
        for line in stats_lines(report.totals, time.perf_counter() - start):
            typer.echo(line, err=True)
    raise typer.Exit(report.exit_status)


def _in_place(text: str | None, profile: Profile) -> bool | None:
    if text is None:
        return None
    if text not in ("on", "off"):
        raise InputError(f"--in-place is on or off, not {text}")
    if not profile.in_place:
        raise InputError(f"--in-place needs a kernel that can convert in place: {profile.name} cannot")
    return text == "on"


def _recording(path: Path, title: str, profile: Profile, in_place: bool | None) -> Recording:
    from guestmem.exec.recording import Recording
    from guestmem.rules import DEFAULT

    return Recording(path, title, profile, DEFAULT, in_place=in_place)


def _refusals(process: int, profile: Profile, tell: Callable[[Refusal], None]) -> OperationListener:
    from guestmem.exec.refusals import Refusals

    return Refusals(process, profile, tell)


def _size(text: str | None, *, huge: bool) -> int:
    from guestmem.geometry import X86_64
    from guestmem.units import parse_size

    if text is None:
        return 0
    size = parse_size(text)
    if not huge:
        raise InputError("--page-size needs a profile whose guest_memfd has large pages: --profile next")
    if size not in X86_64.page_sizes:
        names = ", ".join(X86_64.name_of(order) for order in X86_64.orders if order)
        raise InputError(f"--page-size {text}: there are {names}")
    return size
