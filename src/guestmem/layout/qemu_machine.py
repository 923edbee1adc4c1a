"""Where QEMU's x86 machines put RAM in guest-physical space, for formats that name a machine but show no addresses.

pc (i440fx), q35 and microvm as QEMU 7.2 to 11.1 lay them out before firmware runs: the split below 4G, the hole for
VGA, ROMs that shadow the last 256K of the first megabyte, firmware below 4G, NUMA backends laid end to end, and device
memory from the next gigabyte after RAM. Compared row by row with captures of real runs in the tests. Left out: what
firmware changes afterwards, PCI BARs, pflash sizes, CXL, and RAM moved to 1 TiB on AMD vCPUs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from guestmem.layout.value import Backing, Slot
from guestmem.uapi import KVM_MEM_READONLY
from guestmem.units import GIB, KIB, MIB, align_up

__all__ = (
    "PROTECTED_FIRMWARE",
    "Device",
    "QemuMachine",
    "Ram",
    "below_4g",
    "device_memory",
    "machine_slots",
    "parse_machine",
    "place_devices",
)

PROTECTED_FIRMWARE = 4 * MIB  # bytes; what sources do not say, and OVMF's builds for SNP and TDX are
_FOUR_G = 4 * GIB
_MACHINE = re.compile(r"(pc-q35|pc-i440fx|pc|q35|microvm)(?:-(\d{1,3})\.(\d{1,3}))?(?:\D.*)?")


@dataclass(frozen=True, slots=True)
class QemuMachine:
    """A QEMU machine type: family "pc", "q35" or "microvm"; version (0, 0) where the name is an alias."""

    family: str
    version: tuple[int, int] = (0, 0)

    def older_than(self, *version: int) -> bool:
        """Whether this is an old machine type kept for compatibility; an alias is the newest."""
        return self.version != (0, 0) and self.version < version


@dataclass(frozen=True, slots=True)
class Ram:
    """One backend of boot memory (a NUMA node's, or the machine's only one)."""

    name: str
    size: int
    backing: Backing
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """A memory device: its backend, the alignment of its placement, and a GPA where the source tells one."""

    ram: Ram
    align: int
    gpa: int | None = None


def parse_machine(name: str) -> QemuMachine | None:
    """The family and version in a machine type's name; None for one that is not modelled here.

    >>> parse_machine("pc-q35-10.0")
    QemuMachine(family='q35', version=(10, 0))
    """
    match = _MACHINE.fullmatch(name)
    if match is None:
        return None
    family = {"pc-q35": "q35", "pc-i440fx": "pc"}.get(match[1], match[1])
    return QemuMachine(family, (int(match[2]), int(match[3])) if match[2] else (0, 0))


def below_4g(machine: QemuMachine, size: int) -> int:
    """Bytes of ``size`` bytes of RAM that lie below 4G."""
    if machine.family == "q35":
        return size if size < 0xB000_0000 else 0x8000_0000
    if machine.family == "microvm":
        return min(size, 0xC000_0000)
    if size < 0xE000_0000:
        return size
    return 0xE000_0000 if machine.older_than(2, 0) else 0xC000_0000


def machine_slots(
    machine: QemuMachine, nodes: Sequence[Ram], *, vga: bool, most_below_4g: int | None = None, protected: str = ""
) -> list[Slot]:
    """The memslots before firmware runs: RAM cut at the split and in the first megabyte, and the ROM pieces.

    most_below_4g: max-ram-below-4g, bytes. protected: "sev-snp" or "tdx", whose VMs have no read-only memory: SNP's
    option ROMs are RAM, TDX has none, no copy of the firmware is below 1M, and all of it is below 4G, as RAM.
    """
    size = sum(node.size for node in nodes)
    low = below_4g(machine, size)
    if most_below_4g is not None and low > most_below_4g:
        low = most_below_4g
    if protected:
        holes = _protected_holes(protected, vga=vga)
        slots = [slot for piece in _ram_pieces(nodes, low) for slot in _without(piece, holes)]
        roms = [_rom(0xC0000, 128 * KIB, "pc.rom", 0, 0)] if protected == "sev-snp" else []
        return [*slots, *roms, _rom(_FOUR_G - PROTECTED_FIRMWARE, PROTECTED_FIRMWARE, "pc.bios", 0, 0)]
    hole = _low_hole(machine, vga=vga)
    slots = [slot for piece in _ram_pieces(nodes, low) for slot in _without(piece, [hole])]
    if machine.family == "microvm":
        return [*slots, _rom(0xF0000, 64 * KIB, "pc.bios", 0, 0), _rom(_FOUR_G - 64 * KIB, 64 * KIB, "pc.bios", 0, 0)]
    bios = 128 * KIB if machine.older_than(2, 0) else 256 * KIB
    return [
        *slots,
        _rom(0xC0000, 128 * KIB, "pc.rom", 0, KVM_MEM_READONLY),
        _rom(0xE0000, 128 * KIB, "pc.bios", bios - 128 * KIB, KVM_MEM_READONLY),
        _rom(_FOUR_G - bios, bios, "pc.bios", 0, KVM_MEM_READONLY),
    ]


def device_memory(end_of_ram: int) -> int:
    """Where the range for memory devices begins."""
    return align_up(max(end_of_ram, _FOUR_G), GIB)


def place_devices(end_of_ram: int, devices: Sequence[Device]) -> list[tuple[Device, int]]:
    """Give every memory device a GPA: its own, or the lowest free one at its alignment from the next gigabyte on."""
    base = device_memory(end_of_ram)
    placed = [(device, device.gpa) for device in devices if device.gpa is not None]
    for device in devices:
        if device.gpa is None:
            placed.append((device, _lowest_free(base, device, placed)))
    return placed


def _lowest_free(base: int, device: Device, placed: Sequence[tuple[Device, int]]) -> int:
    gpa = align_up(base, device.align)
    for other, start in sorted(placed, key=lambda item: item[1]):
        if start < gpa + device.ram.size and gpa < start + other.ram.size:
            gpa = align_up(start + other.ram.size, device.align)
    return gpa


def _ram_pieces(nodes: Sequence[Ram], low: int) -> list[Slot]:
    """The nodes laid end to end, cut at the split, high parts moved to 4G."""
    pieces, at = [], 0
    for node in nodes:
        for start, end in ((at, min(at + node.size, low)), (max(at, low), at + node.size)):
            if start < end:
                gpa = start if start < low else start - low + _FOUR_G
                pieces.append(_window(node, gpa, end - start, start - at))
        at += node.size
    return pieces


def _low_hole(machine: QemuMachine, *, vga: bool) -> tuple[int, int]:
    """Where no RAM is in the first megabyte."""
    if machine.family == "microvm":
        return 0xF0000, 0x100000
    return (0xA0000 if vga else 0xC0000), 0x100000


def _protected_holes(protected: str, *, vga: bool) -> list[tuple[int, int]]:
    end = 0xE0000 if protected == "sev-snp" else 0xC0000
    return [(0xA0000 if vga else 0xC0000, end)]


def _without(piece: Slot, holes: Sequence[tuple[int, int]]) -> list[Slot]:
    """Take holes, which ascend, out of a piece of RAM."""
    parts, at = [], piece.gpa
    for start, end in holes:
        if start < piece.end and at < end and start < end:
            parts.append((at, start))
            at = end
    parts.append((at, piece.end))
    return [
        Slot(
            gpa=start,
            size=end - start,
            flags=piece.flags,
            region=piece.region,
            offset=(piece.offset or 0) + start - piece.gpa,
            file=piece.file,
            backing=piece.backing,
        )
        for start, end in parts
        if start < end
    ]


def _window(node: Ram, gpa: int, size: int, offset: int) -> Slot:
    return Slot(gpa=gpa, size=size, region=node.name, offset=offset, backing=node.backing, file=node.file)


def _rom(gpa: int, size: int, region: str, offset: int, flags: int) -> Slot:
    return Slot(gpa=gpa, size=size, flags=flags, region=region, offset=offset, backing=Backing("anonymous"))
