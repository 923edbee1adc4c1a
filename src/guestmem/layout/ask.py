"""``guestmem.check``: one call from a source to the answer."""

from __future__ import annotations

import os

from guestmem.errors import InputError
from guestmem.geometry import geometry_named
from guestmem.layout.binding import FileLimits
from guestmem.layout.check import Checked
from guestmem.layout.check import check as judge
from guestmem.layout.coverage import HostLimits
from guestmem.layout.live import read_live
from guestmem.layout.recognise import load, read
from guestmem.model.profiles import NEWEST, kernel_named
from guestmem.rules import DEFAULT, Rule, rule_named
from guestmem.units import parse_size

__all__ = ("LIVE", "check", "host_of")

LIVE = ("pid:", "qmp:", "qemu:")  # sources that are no files


def check(
    source: str | os.PathLike[str],
    *,
    profile: str = NEWEST.name,
    page_size: str | None = None,
    rule: Rule | str | None = None,
    geometry: str = "x86-64",
    thp: bool = True,
    format: str | None = None,
) -> list[Checked]:
    """Judge every VM of a source: a file that ``guestmem check`` reads, or pid:PID, qmp:PATH, qemu:ARGUMENTS.

    Each answer has the layout, its coverage, what of that is certain, and the findings, the most severe first.
    page_size and rule are for profile "next"; thp False counts no transparent huge page. ValueError says what is wrong
    with the source or with a name; BackendUnavailable what a live source needs.

    >>> [one] = check("examples/layouts/qemu100-q35-10G-memfd.txt")
    >>> one.severity, one.findings[0].id, one.coverage.mapped[1], one.certainty.mapped[1]
    ('warning', 'hva-not-congruent', 0, 0)
    """
    host = host_of(profile, page_size, rule, geometry, thp=thp)
    text = os.fspath(source)
    layouts = read_live(text) if text.startswith(LIVE) else read(text, load(text), format)
    return [judge(layout, host) for layout in layouts]


def host_of(profile: str, page_size: str | None, rule: Rule | str | None, geometry: str, *, thp: bool) -> HostLimits:
    """The kernel and host of these names; InputError lists what there is."""
    shape, kernel = geometry_named(geometry), kernel_named(profile)
    if not kernel.huge and (page_size or rule):
        raise InputError(f"a page size and a rule need profile next: {kernel.name} hands out base pages only")
    size = 0
    if kernel.huge:
        size = parse_size(page_size) if page_size else shape.page_sizes[-1]
        shape.order_of(size)
    chosen = rule_named(rule) if isinstance(rule, str) else rule or DEFAULT
    return HostLimits(shape, thp, FileLimits(size, chosen, serve_shared=bool(kernel.gmem_flags)), kernel)
