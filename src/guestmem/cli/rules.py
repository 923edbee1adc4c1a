"""``guestmem rules``: every alignment rule against real layouts, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from guestmem.cli import complete, layouts
from guestmem.errors import InputError

if TYPE_CHECKING:
    from guestmem.rules import Rule

__all__ = ("EXAMPLES", "rules")

EXAMPLES = """
Examples:

    guestmem rules examples/layouts/qemu72-q35-4G.txt

    guestmem rules --rule examples/rules/page_order.py:PageOrder examples/layouts/qemu72-q35-4G.txt

    guestmem rules --slots --packing one-file --page-size 2M examples/layouts/libvirt-plain.xml

Exit status: 0, or 2 bad usage or input, 4 an optional part is missing.
"""


def rules(
    sources: list[str] = layouts.SOURCES,
    format: str = layouts.FORMAT,
    packing: str = typer.Option(
        "both", "--packing", metavar="HOW", help="one-file (as the VMM packs RAM), per-slot, or both."
    ),
    page_size: str = layouts.PAGE_SIZE,
    geometry: str = layouts.GEOMETRY,
    rule: list[str] = typer.Option(
        [],
        "--rule",
        metavar="NAME",
        autocompletion=complete.rules,
        help="Only these rules; FILE.py:NAME is one of your own, beside the catalogue.",
    ),
    slots: bool = typer.Option(False, "--slots", help="Also say which slots each rule refuses, and why."),
    as_json: bool = typer.Option(False, "--json", help="One JSON object on stdout."),
    as_markdown: bool = typer.Option(False, "--markdown", help="A page for the documentation on stdout."),
    firecracker: str = layouts.FIRECRACKER,
) -> None:
    """Put every alignment rule of the catalogue side by side, as if each RAM slot were bound to a guest_memfd.

    Per rule: which slots are refused, what can be mapped how large, and the best the layout could reach.
    """
    from guestmem.geometry import geometry_named
    from guestmem.layout.bound import PACKINGS, judge
    from guestmem.units import parse_size

    shape = geometry_named(geometry)
    size = parse_size(page_size) if page_size else shape.page_sizes[-1]
    shape.order_of(size)
    chosen = [one for one in PACKINGS if packing in (one, "both")]
    if not chosen:
        raise InputError(f"--packing {packing}: needed one of {', '.join(PACKINGS)}, both")
    found = layouts.load_layouts(sources, format, firecracker)
    judged = _rules(rule)
    verdicts = [judge(layout, one, size, shape, judged) for layout in found if layout.slots for one in chosen]
    if as_json:
        from guestmem.report.rules_json import to_json

        typer.echo(to_json(verdicts))
    elif as_markdown:
        from guestmem.report.rules_markdown import to_markdown
        from guestmem.text import safe

        typer.echo(to_markdown(verdicts, f"guestmem rules --markdown {safe(' '.join(sources))}"), nl=False)
    else:
        from guestmem.report.console import console
        from guestmem.report.rules_text import print_verdicts

        print_verdicts(console(), verdicts, slots=slots)


def _rules(names: list[str]) -> list[Rule]:
    """The rules of these names; the whole catalogue, and those of one's own, where none of the catalogue is named."""
    from guestmem.rules import RULES, rule_named

    named = [rule_named(name) for name in names]
    catalogue = [] if any(rule in RULES for rule in named) else list(RULES)
    return [*catalogue, *named]
