"""``guestmem plan``: offsets, host addresses and GPAs that lose least, and what a migration has to move."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from guestmem.cli import layouts
from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.layout.coverage import Host
    from guestmem.layout.value import Layout
    from guestmem.report.plan_json import PlanEntry

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
    page_size: str = typer.Option(None, "--page-size", metavar="SIZE", help="Of the files; the largest if not given."),
    one_file: bool = typer.Option(False, "--one-file", help="One file for all RAM, not one per region."),
    rule: str = typer.Option("congruent", "--rule", metavar="NAME", help="The alignment rule to satisfy."),
    to: str = typer.Option(
        None, "--to", metavar="GEOMETRY|SIZE", help="Also: what must move on a host with larger pages."
    ),
    movable: list[str] = typer.Option([], "--movable", metavar="REGION", help="A region whose GPA may be changed."),
    geometry: str = typer.Option("x86-64", "--geometry", metavar="NAME", help="The stage-2 page sizes."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    firecracker: str = layouts.FIRECRACKER,
) -> None:
    """Plan where private memory should lie: file offsets, host addresses and, where allowed, GPAs.

    The plan has the fewest page-table leaves under the rule, then the least file space. With --to it says which offsets
    stay valid on a host with larger pages, and how to move the data of the others.
    """
    host = layouts.host_of("next", page_size, rule, geometry, "possible")
    overrides = layouts.overrides_of([], None, [], None)
    found = [layout for layout in layouts.load_layouts(sources, format, firecracker, overrides) if layout.slots]
    target = None if to is None else _target(to, rule, geometry)
    known = {slot.region for layout in found for slot in layout.slots}
    for name in movable:
        if name not in known:
            raise InputError(f"--movable {name}: there are {', '.join(sorted(known))}")
    entries = [_planned(layout, host, target, movable, one_file) for layout in found]
    if as_json:
        from guestmem.report.plan_json import to_json

        typer.echo(to_json(entries))
    else:
        from guestmem.report.as_text import console
        from guestmem.report.plan_text import print_plans

        print_plans(console(), entries)


def _target(to: str, rule: str, geometry: str) -> Host:
    """The host that --to names: a geometry, with its largest page, or a page size of the same geometry."""
    from guestmem.geometry import GEOMETRIES

    if to in GEOMETRIES:
        return layouts.host_of("next", None, rule, to, "possible")
    return layouts.host_of("next", to, rule, geometry, "possible")


def _planned(layout: Layout, host: Host, target: Host | None, movable: list[str], one_file: bool) -> PlanEntry:
    from guestmem.layout.planning.migration import migrate
    from guestmem.layout.planning.plan import make_plan
    from guestmem.report.plan_json import entry_of

    found = make_plan(layout, host, movable=movable, one_file=one_file)
    # A layout that says where it is bound is migrated from there, another from where it was planned.
    bound = found.now.layout if any(slot.file for slot in layout.slots) else found.planned.layout
    return entry_of(layout.source, found, None if target is None else migrate(bound, target))
