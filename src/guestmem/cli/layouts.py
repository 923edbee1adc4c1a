"""What ``check``, ``rules`` and ``plan`` share: their sources, and the options that say what a source cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import typer

from guestmem.cli import complete
from guestmem.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guestmem.layout.assume import Overrides
    from guestmem.layout.coverage import HostLimits
    from guestmem.layout.error import LayoutError
    from guestmem.layout.fleet import Fleet
    from guestmem.layout.value import Layout

__all__ = (
    "ATTRIBUTES",
    "BACKING",
    "FIRECRACKER",
    "FORMAT",
    "GEOMETRY",
    "HVA",
    "HVA_ALIGN",
    "PAGE_SIZE",
    "SOURCES",
    "give_up",
    "host_of",
    "load_layouts",
    "load_sources",
    "overrides_of",
)

SOURCES = typer.Argument(
    ...,
    metavar="SOURCE...",
    help="A file ('-': standard input), pid:PID of a running VMM, qmp:SOCKET of a QEMU, 'qemu:ARGUMENTS' to start one.",
)
FORMAT = typer.Option(
    None,
    "--format",
    metavar="NAME",
    autocompletion=complete.formats,
    help="The file's format, where it is not recognised: qemu-mtree, qemu-trace, qemu-argv, libvirt, firecracker, "
    "firecracker-uffd, cloud-hypervisor, gdb-dump, strace, recording, guestmem-fleet, guestmem-host, "
    "guestmem-json, guestmem-toml, guestmem-parquet.",
)
HVA = typer.Option([], "--hva", metavar="REGION=ADDRESS", help="The host address of a region's start.")
HVA_ALIGN = typer.Option(None, "--hva-align", metavar="SIZE", help="How unknown host addresses are aligned.")
BACKING = typer.Option(
    [], "--backing", metavar="[REGION=]KIND[:SIZE]", help="anonymous, shmem, file, hugetlb:2M, hugetlb:1G, device."
)
ATTRIBUTES = typer.Option(
    None, "--attributes", metavar="shared|private", help="What all pages of guest_memfd slots are."
)
FIRECRACKER = typer.Option(
    "1.13", "--firecracker-version", metavar="X.Y", help="The version whose layout to take: it changed with 1.13."
)

PAGE_SIZE = typer.Option(None, "--page-size", metavar="SIZE", help="Page size of the files; the largest if not given.")
GEOMETRY = typer.Option(
    "x86-64",
    "--geometry",
    metavar="NAME",
    autocompletion=complete.geometries,
    help="The architecture: which page sizes it has.",
)


def load_layouts(sources: list[str], format: str | None, firecracker: str) -> list[Layout]:
    """Every layout of every source, as it says them; LayoutError."""
    found, _, unread = load_sources(sources, format, firecracker, overrides_of([], None, [], None), fleets=False)
    if unread:
        give_up(unread)
    return found


def give_up(unread: Sequence[LayoutError]) -> NoReturn:
    """Name every source that could not be read; the last one ends the program, with exit status 2."""
    from guestmem.text import safe

    *others, last = unread
    for error in others:
        typer.echo(f"guestmem: {safe(str(error))}", err=True)
    raise last


def load_sources(
    sources: list[str], format: str | None, firecracker: str, overrides: Overrides, *, fleets: bool = True
) -> tuple[list[Layout], list[Fleet], list[LayoutError]]:
    """Every layout, unless they are read as layouts too every fleet, and why the other sources cannot be read."""
    from guestmem.layout.ask import LIVE
    from guestmem.layout.assume import apply
    from guestmem.layout.error import LayoutError
    from guestmem.layout.live import read_live
    from guestmem.layout.recognise import load, read, read_fleet

    version = _version(firecracker)
    found: list[Layout] = []
    found_fleets: list[Fleet] = []
    unread: list[LayoutError] = []
    for source in sources:
        try:
            if source.startswith(LIVE):
                found += (apply(layout, overrides) for layout in read_live(source))
                continue
            data = load(source)
            fleet = read_fleet(source, data, format) if fleets else None
            if fleet is not None:
                found_fleets.append(fleet)
            else:
                found += (apply(layout, overrides) for layout in read(source, data, format, version))
        except LayoutError as error:
            unread.append(error)
    return found, found_fleets, unread


def overrides_of(hva: list[str], hva_align: str | None, backing: list[str], attributes: str | None) -> Overrides:
    """The options as values; InputError says what was wrong."""
    from guestmem.layout.assume import Overrides, parse_backing, parse_hva
    from guestmem.units import is_power_of_two, parse_size

    align = None if hva_align is None else parse_size(hva_align)
    if align is not None and not is_power_of_two(align):
        raise InputError(f"--hva-align {hva_align}: needed a power of two")
    if attributes not in (None, "shared", "private"):
        raise InputError(f"--attributes {attributes}: needed shared or private")
    return Overrides(
        dict(map(parse_hva, hva)),
        align,
        dict(map(parse_backing, backing)),
        "shared" if attributes == "shared" else "private" if attributes == "private" else None,
    )


def host_of(profile: str, page_size: str | None, rule: str | None, geometry: str, thp: str) -> HostLimits:
    """The kernel and host that the options describe; InputError lists what there is."""
    from guestmem.layout import ask

    if thp not in ("possible", "never"):
        raise InputError(f"--thp {thp}: needed possible or never")
    return ask.host_of(profile, page_size, rule, geometry, thp=thp == "possible")


def _version(text: str) -> tuple[int, int]:
    major, _, minor = text.removeprefix("v").partition(".")
    if not (major.isdecimal() and minor.partition(".")[0].isdecimal()) or len(text) > 12:
        raise InputError(f"--firecracker-version {text}: needed X.Y, as in 1.12")
    return int(major), int(minor.partition(".")[0])
