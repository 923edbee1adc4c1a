"""What the user knows better than the source: HVAs, backings and attributes given on the command line.

Pure functions from a layout to a layout. Whatever is set replaces the assumption it answers, and is itself stated as an
assumption that names the option, so that a report always shows where a number came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from guestmem.errors import InputError
from guestmem.layout.error import printable
from guestmem.layout.placement import ALIGNED_BASE
from guestmem.layout.value import Assumption, Backing, BackingKind, Layout, Range, Slot
from guestmem.units import U64, format_size, is_power_of_two, parse_size

__all__ = ("Overrides", "apply", "parse_backing", "parse_hva")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What to set. Keys are regions ("" for every slot); an HVA is that of offset 0 of the region."""

    hva: Mapping[str, int] = field(default_factory=dict)
    hva_align: int | None = None
    backing: Mapping[str, Backing] = field(default_factory=dict)
    attributes: Literal["shared", "private"] | None = None


def apply(layout: Layout, overrides: Overrides) -> Layout:
    """The layout with everything that was set; ValueError for a region that the layout does not have."""
    regions = {slot.region for slot in layout.slots}
    for name in (*overrides.hva, *overrides.backing):
        if name and name not in regions:
            known = ", ".join(sorted(region for region in regions if region))
            known = known or "without names"
            raise InputError(f"{layout.source} has no region '{printable(name)}'; its regions are {known}")
    layout = _set_hva(layout, overrides)
    layout = _set_backing(layout, overrides.backing)
    return _set_attributes(layout, overrides.attributes)


def parse_hva(text: str) -> tuple[str, int]:
    """Parse REGION=ADDRESS.

    >>> parse_hva("pc.ram=0x7f0000000000")
    ('pc.ram', 139637976727552)
    """
    region, equals, address = text.rpartition("=")
    if not equals or not region:
        raise InputError(f"--hva '{printable(text)}': needed REGION=ADDRESS, as in pc.ram=0x7f0000000000")
    return region, parse_size(address)


def parse_backing(text: str) -> tuple[str, Backing]:
    """Parse [REGION=]KIND[:SIZE].

    >>> region, backing = parse_backing("m0=hugetlb:1G")
    >>> region, backing.kind, backing.page_size
    ('m0', 'hugetlb', 1073741824)
    """
    region, _, what = text.rpartition("=")
    kind, _, size = what.partition(":")
    kinds: tuple[BackingKind, ...] = get_args(BackingKind)
    for known in kinds:
        if kind == known:
            page_size = parse_size(size) if size else Backing().page_size
            if not is_power_of_two(page_size) or (kind == "hugetlb" and not size):
                raise InputError(f"--backing '{printable(text)}': needed a page size, as in hugetlb:2M")
            return region, Backing(known, page_size)
    raise InputError(f"--backing '{printable(text)}': needed [REGION=]KIND[:SIZE] with KIND one of {', '.join(kinds)}")


def _set_hva(layout: Layout, overrides: Overrides) -> Layout:
    if not overrides.hva and overrides.hva_align is None:
        return layout
    slots = [_with_hva(slot, overrides) for slot in layout.slots]
    notes = [f"{name} at {address:#x}" for name, address in overrides.hva.items()]
    if overrides.hva_align is not None:
        notes.append(f"unknown ones are aligned to {format_size(overrides.hva_align)} and no more")
    still_assumed = overrides.hva_align is None and any(
        slot.hva is None and slot.assumed_hva is not None for slot in slots
    )
    kept = [note for note in layout.assumptions if note.about != "hva" or still_assumed]
    said = Assumption("hva", f"HVAs are as given: {', '.join(notes)}", "--hva, --hva-align")
    return replace(layout, slots=tuple(slots), assumptions=(*kept, said))


def _with_hva(slot: Slot, overrides: Overrides) -> Slot:
    if slot.region in overrides.hva:
        return replace(slot, hva=(overrides.hva[slot.region] + (slot.offset or 0)) % U64, assumed_hva=None)
    if slot.hva is None and overrides.hva_align is not None:
        return replace(slot, assumed_hva=ALIGNED_BASE + overrides.hva_align + (slot.offset or 0))
    return slot


def _set_backing(layout: Layout, backing: Mapping[str, Backing]) -> Layout:
    if not backing:
        return layout
    slots = [_with_backing(slot, backing.get(slot.region) or backing.get("")) for slot in layout.slots]
    said = ", ".join(
        f"{name or 'every slot'} {given.kind} with {format_size(given.page_size)} pages"
        for name, given in backing.items()
    )
    still_assumed = any(slot.assumed_hva is not None and slot.backing.kind != "hugetlb" for slot in slots)
    replaced = ("backing",) if still_assumed else ("backing", "hva")
    kept = [note for note in layout.assumptions if note.about not in replaced]
    note = Assumption("backing", f"the backing is as given: {said}", "--backing")
    return replace(layout, slots=tuple(slots), assumptions=(*kept, note))


def _with_backing(slot: Slot, given: Backing | None) -> Slot:
    """A mapping of hugetlb pages begins at a multiple of them, whatever was assumed for it."""
    if given is None:
        return slot
    if given.kind == "hugetlb" and slot.assumed_hva is not None:
        return replace(slot, backing=given, assumed_hva=ALIGNED_BASE + (slot.offset or 0))
    return replace(slot, backing=given)


def _set_attributes(layout: Layout, attributes: Literal["shared", "private"] | None) -> Layout:
    if attributes is None:
        return layout
    bound = tuple(Range(slot.gpa, slot.end) for slot in layout.slots if slot.guest_memfd)
    kept = [note for note in layout.assumptions if note.about != "attributes"]
    note = Assumption("attributes", f"all pages of guest_memfd slots are {attributes}, as given", "--attributes")
    return replace(layout, private=bound if attributes == "private" else (), assumptions=(*kept, note))
