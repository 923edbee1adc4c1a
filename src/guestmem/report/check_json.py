"""The JSON form of ``guestmem check``: stable, typed, described by ``guestmem schema check``.

Addresses and file offsets are "0x..." strings; sizes and bytes are integers. ``levels`` counts bytes that can be mapped
with pages of that size *or larger*, so for every level ``levels`` plus the bytes ``lost`` there is the slot's size;
``leaves`` counts page-table leaves when every byte is mapped as large as it can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from guestmem.layout.check import Checked
from guestmem.layout.coverage import HostLimits, Lost, SlotCoverage, best_possible
from guestmem.layout.findings import Finding
from guestmem.layout.findings.value import Bytes
from guestmem.report.json_text import json_text
from guestmem.report.words import by_level
from guestmem.units import format_size

if TYPE_CHECKING:
    from guestmem.layout.fleet import FleetSums
    from guestmem.layout.observed import Observed, SlotObserved

__all__ = ("CheckReport", "FleetEntry", "FleetLost", "WorstVm", "check_schema", "fleet_entry", "to_json")

_WORST = 10  # VMs of a fleet that are named


class LostEntry(msgspec.Struct):
    """Bytes that cannot be mapped with pages of a level, for one reason."""

    level: str
    reason: str
    bytes: int


class SlotEntry(msgspec.Struct):
    """One memslot. hva is null where the source does not tell it (see assumptions)."""

    gpa: str
    size: int
    hva: str | None
    offset: str | None
    flags: int
    region: str
    file: str | None
    slot: int | None
    address_space: int
    backing: str
    levels: dict[str, int]
    leaves: dict[str, int]
    lost: list[LostEntry]


class LayoutTotals(msgspec.Struct):
    """Sums over the slots; best is what the same guest-physical layout could reach with ideal memory and kernel.

    certain is the part of levels that does not hang on what the source does not say.
    """

    size: int
    levels: dict[str, int]
    leaves: dict[str, int]
    lost: list[LostEntry]
    best: dict[str, int]
    certain: dict[str, int]


class AssumptionEntry(msgspec.Struct):
    """Something the source does not tell; option is how to change it."""

    about: str
    text: str
    option: str


class FindingEntry(msgspec.Struct):
    """One finding; slots are indexes into the source's slots, lost and gain are bytes by level."""

    id: str
    severity: str
    message: str
    remedy: str
    slots: list[int]
    lost: dict[str, int]
    gain: dict[str, int]


class DifferingEntry(msgspec.Struct):
    """A frame that got another page size (bytes) than the largest allowed."""

    gpa: str
    allowed: int
    got: int


class ObservedEntry(msgspec.Struct):
    """What a trace says of a slot, by index: faults by level, and how many got less or more than allowed."""

    slot: int
    faults: dict[str, int]
    smaller: int
    larger: int
    examples: list[DifferingEntry]


class SourceEntry(msgspec.Struct):
    """One layout: a file may hold several (source then names the part). observed is null without --observed."""

    source: str
    format: str
    vmm: str
    machine: str
    assumptions: list[AssumptionEntry]
    slots: list[SlotEntry]
    totals: LayoutTotals
    findings: list[FindingEntry]
    observed: list[ObservedEntry] | None = None


class FleetLost(msgspec.Struct):
    """Bytes lost at a level to one reason, and in how many VMs."""

    level: str
    reason: str
    bytes: int
    vms: int


class WorstVm(msgspec.Struct):
    """One of the VMs that lose most at the second level."""

    name: str
    size: int
    lost: int


class FleetEntry(msgspec.Struct):
    """One fleet."""

    source: str
    format: str
    vms: int
    slots: int
    size: int
    levels: dict[str, int]
    lost: list[FleetLost]
    worst: list[WorstVm]


class HostEntry(msgspec.Struct):
    """What kernel and host were taken to be."""

    profile: str
    geometry: str
    thp: str
    guest_memfd_page_size: int
    rule: str | None


class CheckReport(msgspec.Struct):
    """The answer of guestmem check."""

    sources: list[SourceEntry]
    fleets: list[FleetEntry]
    host: HostEntry
    format: str = "guestmem-check/1"


def to_json(
    checked: list[Checked],
    host: HostLimits,
    profile: str,
    fleets: Iterable[FleetEntry] = (),
    observed: Observed | None = None,
) -> str:
    """The report as one JSON document; observed is of the only layout."""
    sources = [_source(one) for one in checked]
    if observed is not None:
        sources[0].observed = [_observed(slot) for slot in observed.slots]
    return json_text(CheckReport(sources, list(fleets), _host(host, profile)))


def fleet_entry(sums: FleetSums) -> FleetEntry:
    """The verdict on a fleet as typed values."""
    sizes = sums.host.sizes
    return FleetEntry(
        sums.fleet.source,
        sums.fleet.format,
        len(sums.fleet.names),
        sums.fleet.slots,
        sums.size,
        by_level(sizes, sums.mapped),
        [
            FleetLost(format_size(size), reason.value, lost, vms)
            for level, size in enumerate(sizes)
            for reason, (lost, vms) in sums.lost(level).items()
        ],
        [WorstVm(*one) for one in sums.worst(_WORST)],
    )


def check_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of the report."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "guestmem check",
        **msgspec.json.schema(CheckReport),
    }


def _host(host: HostLimits, profile: str) -> HostEntry:
    return HostEntry(
        profile,
        host.geometry.name,
        "possible" if host.thp else "never",
        host.files.page_size or host.geometry.base_page_size,
        host.files.rule.name if host.files.page_size else None,
    )


def _source(one: Checked) -> SourceEntry:
    coverage, layout = one.coverage, one.layout
    return SourceEntry(
        layout.source,
        layout.format,
        layout.vmm,
        layout.machine,
        [AssumptionEntry(note.about, note.text, note.option) for note in layout.assumptions],
        [_slot(item) for item in coverage.slots],
        _totals(one),
        [_finding(finding) for finding in one.findings],
    )


def _observed(slot: SlotObserved) -> ObservedEntry:
    return ObservedEntry(
        slot.index,
        {format_size(size): count for size, count in sorted(slot.faults.items())},
        slot.smaller,
        slot.larger,
        [DifferingEntry(f"{each.gpa:#x}", each.allowed, each.got) for each in slot.examples],
    )


def _slot(item: SlotCoverage) -> SlotEntry:
    slot = item.slot
    return SlotEntry(
        gpa=f"{slot.gpa:#x}",
        size=slot.size,
        hva=None if slot.hva is None else f"{slot.hva:#x}",
        offset=None if slot.offset is None else f"{slot.offset:#x}",
        flags=slot.flags,
        region=slot.region,
        file=slot.file,
        slot=slot.number,
        address_space=slot.address_space,
        backing=f"{slot.backing.kind} {format_size(slot.backing.page_size)}",
        levels=by_level(item.sizes, item.mapped),
        leaves=by_level(item.sizes, item.leaves),
        lost=_lost(item.lost),
    )


def _totals(one: Checked) -> LayoutTotals:
    coverage, sizes = one.coverage, one.coverage.host.sizes
    return LayoutTotals(
        coverage.size,
        by_level(sizes, coverage.mapped),
        by_level(sizes, coverage.leaves),
        _lost(coverage.lost),
        by_level(sizes, best_possible(coverage)),
        by_level(sizes, one.certainty.mapped),
    )


def _finding(finding: Finding) -> FindingEntry:
    return FindingEntry(
        finding.id,
        finding.severity,
        finding.message,
        finding.remedy,
        list(finding.slots),
        _pairs(finding.lost),
        _pairs(finding.gain),
    )


def _lost(lost: tuple[Lost, ...]) -> list[LostEntry]:
    return [LostEntry(format_size(entry.page_size), entry.reason.value, entry.size) for entry in lost]


def _pairs(pairs: Bytes) -> dict[str, int]:
    return {format_size(size): value for size, value in pairs}
