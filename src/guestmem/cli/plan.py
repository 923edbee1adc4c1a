"""``guestmem plan``: offsets, host addresses and GPAs that lose least, and what a migration has to move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from guestmem.cli import complete, layouts
from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.layout.coverage import HostLimits

__all__ = ("EXAMPLES", "plan")

EXAMPLES = """
Examples:

    guestmem plan --one-file examples/layouts/qemu72-q35-4G.txt

    guestmem plan --rule fits-size --page-size 2M examples/layouts/libvirt-plain.xml

    guestmem plan --page-size 2M --to 1G --one-file examples/layouts/qemu72-q35-numa-odd.txt

Exit status: 0, or 2 bad usage or input, 4 an optional part is missing.
"""


def plan(
    sources: list[str] = layouts.SOURCES,
    format: str = layouts.FORMAT,
    page_size: str = layouts.PAGE_SIZE,
    one_file: bool = typer.Option(False, "--one-file", help="One file for all RAM, not one per region."),
    rule: str = typer.Option(
        "congruent",
        "--rule",
        metavar="NAME",
        autocompletion=complete.rules,
        help="The alignment rule to satisfy, or FILE.py:NAME.",
    ),
    to: str = typer.Option(
        None, "--to", metavar="GEOMETRY|SIZE", help="Also say what must move on a host with larger pages."
    ),
    movable: list[str] = typer.Option([], "--movable", metavar="REGION", help="A region whose GPA may be changed."),
    geometry: str = layouts.GEOMETRY,
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    firecracker: str = layouts.FIRECRACKER,
) -> None:
    """Plan where private memory should lie: file offsets, host addresses and, where allowed, GPAs.

    The plan looks for few page-table leaves under the rule, then for little file space; it is not proved to be the
    best. With --to it says which offsets stay valid on a host with larger pages, and how to move the other data.
    """
    from guestmem.layout.planning.migration import migrate, start_of
    from guestmem.layout.planning.plan import make_plan

    host = layouts.host_of("next", page_size, rule, geometry, "possible")
    found = [layout for layout in layouts.load_layouts(sources, format, firecracker) if layout.slots]
    target = None if to is None else _target(to, rule, geometry)
    known = {slot.region for layout in found for slot in layout.slots}
    for name in movable:
        if name not in known:
            raise InputError(f"--movable {name}: the regions are {', '.join(sorted(known))}")
    plans = [make_plan(layout, host, movable=movable, one_file=one_file) for layout in found]
    moves = [
        None if target is None else migrate(start_of(layout, made), target)
        for layout, made in zip(found, plans, strict=True)
    ]
    answers = list(zip(plans, moves, strict=True))
    if as_json:
        from guestmem.report.plan_json import to_json

        typer.echo(to_json(answers))
    else:
        from guestmem.report.console import console
        from guestmem.report.plan_text import print_plans

        print_plans(console(), answers)


def _target(to: str, rule: str, geometry: str) -> HostLimits:
    """The host that --to names: a geometry, with its largest page, or a page size of the same geometry."""
    from guestmem.geometry import GEOMETRIES

    if to in GEOMETRIES:
        return layouts.host_of("next", None, rule, to, "possible")
    return layouts.host_of("next", to, rule, geometry, "possible")
