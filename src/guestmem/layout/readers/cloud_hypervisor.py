"""Cloud Hypervisor's VM config (``vm.create``, ``vm.info``, a snapshot's config.json), x86-64, v36 to v53.

RAM lies in [0, 3G) and from 4G on. Zones are laid end to end over the two ranges in list order, a zone cut at 3G; the
room left in a range is rounded down to the zone's unit but the start is not rounded up, so a zone of an odd size costs
the next one its huge pages. Every piece is its own mapping and its own slot. Left out: slots of devices, slot numbers
(a hash map's order), ACPI hotplug that has not happened, and aarch64.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import msgspec

from guestmem.layout.error import LayoutError
from guestmem.layout.placement import ALIGNED_BASE, DEFAULT_HUGE, DEFAULT_HUGE_ASSUMPTION, hva_assumption
from guestmem.layout.text import decode_json
from guestmem.layout.value import Assumption, Backing, Layout, ReaderRemark, Slot
from guestmem.units import GIB, KIB, MIB, U64, align_down, align_up, format_size, is_power_of_two

__all__ = ("read",)

_RANGES = ((0, 3 * GIB), (4 * GIB, U64))
_HOTPLUG_ALIGN = 128 * MIB
_MAX_ZONES = 4096


class _Zone(msgspec.Struct):
    id: str = "mem0"
    size: int = 0
    file: str | None = None
    shared: bool | None = None
    hugepages: bool | None = None
    hugepage_size: int | None = None
    hotplug_size: int | None = None
    hotplugged_size: int | None = None


class _Memory(msgspec.Struct):
    size: int = 0
    shared: bool | None = None
    hugepages: bool | None = None
    hugepage_size: int | None = None
    hotplug_method: str | None = None
    hotplug_size: int | None = None
    hotplugged_size: int | None = None
    thp: bool | None = None
    zones: list[_Zone] | None = None


class _Config(msgspec.Struct):
    memory: _Memory = msgspec.field(default_factory=lambda: _Memory(size=512 * MIB))


class _Document(_Config):
    config: _Config | None = None  # the answer of vm.info


@dataclass(frozen=True, slots=True)
class _Piece:
    zone: _Zone
    gpa: int
    size: int
    region: str
    part_of: str = ""


def read(source: str, data: bytes) -> list[Layout]:
    """The memslots of the config's RAM and virtio-mem regions."""
    document = decode_json(source, data, _Document)
    memory = (document.config or document).memory
    zones = _zones(source, memory)
    pieces, remarks = _lay_out(source, zones)
    if memory.hotplug_method == "VirtioMem":
        pieces.extend(_virtio_mem(source, zones, pieces))
    slots = [_slot(piece) for piece in pieces]
    return [
        Layout(
            source,
            "cloud-hypervisor",
            tuple(slots),
            assumptions=tuple(_assumptions(memory, zones, slots)),
            remarks=tuple(remarks),
            vmm="cloud-hypervisor",
            machine="x86-64",
        )
    ]


def _zones(source: str, memory: _Memory) -> list[_Zone]:
    zones = memory.zones or []
    if zones and memory.size:
        needed = "needed 0, because the zones have sizes of their own"
        raise LayoutError(source, needed, field="memory.size", value=memory.size, remedy="give sizes to the zones only")
    if len(zones) > _MAX_ZONES:
        raise LayoutError(source, f"at most {_MAX_ZONES} zones", field="memory.zones", value=len(zones))
    zones = zones or [
        _Zone(
            "mem0",
            memory.size,
            shared=memory.shared,
            hugepages=memory.hugepages,
            hugepage_size=memory.hugepage_size,
            hotplug_size=memory.hotplug_size,
            hotplugged_size=memory.hotplugged_size,
        )
    ]
    name, count = Counter(zone.id for zone in zones).most_common(1)[0]
    if count > 1:
        raise LayoutError(source, "needed another id for each zone", field="memory.zones", value=name)
    for index, zone in enumerate(zones):
        _check(source, zone, f"memory.zones[{index}]" if memory.zones else "memory")
    return zones


def _check(source: str, zone: _Zone, field: str) -> None:
    """Refuse what Cloud Hypervisor refuses, and numbers that cannot be sizes."""
    page = zone.hugepage_size
    if page is not None and not (is_power_of_two(page) and 4 * KIB <= page <= GIB):
        remedy = "use 2097152 or 1073741824"
        raise LayoutError(source, "needed a page size", field=f"{field}.hugepage_size", value=page, remedy=remedy)
    if not 0 < zone.size < U64 // 4 or zone.size % _unit(zone):
        unit = format_size(_unit(zone))
        raise LayoutError(source, f"needed a positive multiple of {unit}", field=f"{field}.size", value=zone.size)
    hotplug = zone.hotplug_size or 0
    if not 0 <= hotplug < U64 // 4 or hotplug % _HOTPLUG_ALIGN:
        raise LayoutError(source, "needed a multiple of 128M", field=f"{field}.hotplug_size", value=hotplug)


def _unit(zone: _Zone) -> int:
    """What the zone's pieces are multiples of: its huge page, else 4K."""
    return (zone.hugepage_size or DEFAULT_HUGE) if zone.hugepages else 4 * KIB


def _lay_out(source: str, zones: list[_Zone]) -> tuple[list[_Piece], list[ReaderRemark]]:
    """Fill the ranges with the zones in order, as the memory manager does."""
    pieces: list[_Piece] = []
    remarks: list[ReaderRemark] = []
    range_index, at = 0, 0
    for zone in zones:
        left, count = zone.size, 0
        while left:
            end = _RANGES[range_index][1]
            size = min(left, align_down(end - at, _unit(zone)))
            if size:
                pieces.append(_Piece(zone, at, size, f"{zone.id}/{count}", zone.id))
                at, left, count = at + size, left - size, count + 1
            if left:
                if at < end:
                    remarks.append(_gap(zone, at, end))
                range_index += 1
                if range_index == len(_RANGES):
                    raise LayoutError(source, "needed to fit below 2**64", field=f"zone {zone.id}", value=zone.size)
                at = _RANGES[range_index][0]
    return [_named(piece, pieces) for piece in pieces], remarks


def _named(piece: _Piece, pieces: list[_Piece]) -> _Piece:
    """A zone in one piece has the zone's name."""
    alone = sum(other.zone is piece.zone for other in pieces) == 1
    return replace(piece, region=piece.zone.id) if alone else piece


def _gap(zone: _Zone, start: int, end: int) -> ReaderRemark:
    size = format_size(end - start)
    unit = format_size(_unit(zone))
    message = f"{size} below {end:#x} stays unused: it is not a multiple of the {unit} pages of zone {zone.id}"
    return ReaderRemark("unused-gap", "note", message, f"make the zones before {zone.id} together a multiple of {unit}")


def _virtio_mem(source: str, zones: list[_Zone], pieces: list[_Piece]) -> list[_Piece]:
    """One region per zone with hotplug_size, a slot as a whole from boot, 128M-aligned after all RAM."""
    at = max(4 * GIB, *(piece.gpa + piece.size for piece in pieces))
    placed = []
    for zone in zones:
        if zone.hotplug_size:
            at = align_up(at, _HOTPLUG_ALIGN)
            placed.append(_Piece(zone, at, zone.hotplug_size, f"{zone.id} virtio-mem"))
            at += zone.hotplug_size
    return placed


def _slot(piece: _Piece) -> Slot:
    zone = piece.zone
    if zone.hugepages:
        backing = Backing("hugetlb", zone.hugepage_size or DEFAULT_HUGE)
    elif zone.file is not None:
        backing = Backing("file")
    else:
        backing = Backing("shmem" if zone.shared else "anonymous")
    # Each piece is its own mapping: aligned to the huge page with hugetlb, by recent kernels to 2M where the size
    # allows it; shmem is where it has transparent huge pages at all (shmem_get_unmapped_area).
    transparent = backing.kind in ("anonymous", "shmem") and piece.size % (2 * MIB) == 0
    off = 0 if zone.hugepages or transparent else 4 * KIB
    return Slot(
        piece.gpa,
        piece.size,
        region=piece.region,
        offset=0,
        backing=backing,
        assumed_hva=ALIGNED_BASE + off,
        part_of=piece.part_of,
    )


def _assumptions(memory: _Memory, zones: list[_Zone], slots: list[Slot]) -> list[Assumption]:
    aligned = [slot.region for slot in slots if slot.assumed_hva == ALIGNED_BASE]
    other = [slot.region for slot in slots if slot.assumed_hva != ALIGNED_BASE]
    found = [Assumption("gpa", "addresses are computed by Cloud Hypervisor's x86-64 layout (v36 to v53)")]
    if aligned:
        how = "aligned to the huge page, or to 2M where the size allows it (mmap on Linux 6.7 and later)"
        found.append(hva_assumption(aligned, how))
    if other:
        found.append(hva_assumption(other, "aligned to 4K only, which is all that mmap promises here"))
    if any(zone.file is not None and not zone.hugepages for zone in zones):
        text = (
            "the file of a zone may be on hugetlbfs, which Cloud Hypervisor finds out by itself: it is taken as another"
        )
        found.append(Assumption("backing", text, "--backing [REGION=]hugetlb:2M"))
    if any(slot.backing.kind == "shmem" for slot in slots):
        text = (
            "the source does not say whether the host's shmem has transparent huge pages (shmem_enabled, by default "
            "never): shared memory counts as possibly 2M"
        )
        found.append(Assumption("thp", text, "--thp never"))
    if any(zone.hugepages and not zone.hugepage_size for zone in zones):
        found.append(DEFAULT_HUGE_ASSUMPTION)
    if memory.thp is False:
        found.append(
            Assumption("thp", "thp is off in the config, but transparent huge pages count as possible", "--thp never")
        )
    return found
