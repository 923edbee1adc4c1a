"""``guestmem lab``: build the lab's kernel, run programs on it, report and remove what there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from guestmem.lab import Hardware, Progress

__all__ = ("app",)

app = typer.Typer(
    help="A real Linux kernel with software-protected VMs, under QEMU's emulation: no KVM, no root, no hardware.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
_KERNEL = typer.Option(
    "6.12",
    "--kernel",
    metavar="VERSION|PACKAGE|PATH",
    help="A version, a linux-image-* package (name or files), a source tree or archive; to boot, also a vmlinux or "
    "bzImage.",
)
_MEMORY = typer.Option("2G", "--memory", metavar="SIZE", help="Of the lab's machine.")
_APPEND = typer.Option("", "--append", metavar="ARGUMENTS", help="For its kernel: hugepagesz=1G hugepages=1")
_ACCEL = typer.Option(
    "tcg", "--accel", metavar="tcg|kvm", help="Emulation, or this host's KVM with nested virtualisation (untested)."
)
_STATUSES = "2 bad usage, 4 something is missing here and the message says what."


@app.command(
    epilog=f"""
Examples:

    guestmem lab build

    guestmem lab build --kernel ~/src/linux

    guestmem lab build --kernel linux-image-6.18.15+deb13-cloud-amd64

Exit status: 0 built, 1 the build failed, {_STATUSES}
"""
)
def build(
    kernel: str = _KERNEL,
    jobs: int = typer.Option(0, "--jobs", min=0, metavar="N", help="Compilers at once; 0: as many as CPUs."),
) -> None:
    """Build the lab's kernel, unless it is built. What was interrupted goes on where it was.

    A version is the distribution's package linux-source-VERSION, installed or downloaded by apt-get (no root). A tree
    is not written to. A kernel package, by its name or as files, is not compiled: what its users run is what is booted.
    """
    from guestmem import lab

    with _progress() as progress:
        built = lab.build(kernel, jobs, progress)
    for option in built.without:
        typer.echo(f"guestmem: {kernel} does not offer {option}; the lab goes without", err=True)
    done = "unpacked" if built.is_packaged else "built"
    typer.echo(f"{built.release}, {done} in {built.seconds:.0f} s: {built.image}")


@app.command(
    "exec",
    context_settings={"allow_interspersed_args": False},
    epilog=f"""
Examples:

    guestmem lab exec -- uname -r

    guestmem lab exec --append "hugepagesz=1G hugepages=1" -- ./my-vmm-tests

Exit status: the command's, 128 + the signal that killed it, 127 if there is none. Else 1 the lab failed, {_STATUSES}
""",
)
def exec_(
    command: list[str] = typer.Argument(..., metavar="COMMAND..."),
    kernel: str = _KERNEL,
    memory: str = _MEMORY,
    append: str = _APPEND,
    accel: str = _ACCEL,
    timeout: float = typer.Option(3600, "--timeout", min=0.001, metavar="SECONDS", help="Kill it after so long."),
) -> None:
    """Run a command in a lab booted for it, as its root, with this host's files read-only and an empty /tmp."""
    from guestmem import lab

    code = lab.exec_(command, kernel=kernel, hardware=_hardware(memory, append, accel), limit_s=timeout)
    raise typer.Exit(code)


@app.command(epilog=f"Exit status: the shell's, 129 if ctrl-] ended it. Else 1 the lab failed, {_STATUSES}")
def shell(kernel: str = _KERNEL, memory: str = _MEMORY, append: str = _APPEND, accel: str = _ACCEL) -> None:
    """An interactive $SHELL in a lab booted for it, as ``exec`` does; ctrl-] ends it, whatever it does."""
    from guestmem import lab

    raise typer.Exit(lab.shell(kernel=kernel, hardware=_hardware(memory, append, accel)))


@app.command(epilog="Exit status: 0 the lab can be booted, 1 it cannot yet.")
def status(as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout.")) -> None:
    """What the lab has here, and what it lacks; nothing is changed."""
    from guestmem import lab
    from guestmem.report.lab_text import lab_json, lab_lines

    found = lab.status()
    typer.echo(lab_json(found) if as_json else "\n".join(lab_lines(found)))
    raise typer.Exit(0 if found.is_ready else 1)


@app.command()
def clean() -> None:
    """Remove the lab's kernels, sources and unfinished builds from the cache; running labs go on."""
    from guestmem import lab

    typer.echo(f"{lab.clean() / 1e6:.0f} MB freed")


def _hardware(memory: str, append: str, accel: str) -> Hardware:
    from guestmem import lab
    from guestmem.errors import InputError
    from guestmem.units import parse_size

    if accel not in ("tcg", "kvm"):
        raise InputError(f"--accel {accel}: it is tcg or kvm")
    return lab.Hardware(memory=parse_size(memory), kernel_arguments=tuple(append.split()), accelerated=accel == "kvm")


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """The stages on stderr: a bar where somebody watches, else a line for each."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _stage_lines()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} steps"), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda now: bar.update(task, description=now.stage, completed=now.done, total=now.total or None)


def _stage_lines() -> Callable[[Progress], None]:
    shown: list[str] = []

    def show(now: Progress) -> None:
        if now.stage not in shown[-1:]:
            shown.append(now.stage)
            typer.echo(now.stage, err=True)

    return show
