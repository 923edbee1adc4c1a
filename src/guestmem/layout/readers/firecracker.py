"""Firecracker: its config file, ``GET /vm/config``, ``PUT /machine-config``, and the UFFD handshake; x86-64.

v1.13 and later put RAM in [0, 3G), [4G, 256G) and from 512G; v1.12 and earlier leave 768M free below 4G and know no
upper gap. Neither JSON carries the version, so it is an option. Each range is one slot. Left out: hotpluggable memory
(registered when plugged), devices, and aarch64.
"""

from __future__ import annotations

import msgspec

from guestmem.layout.error import LayoutError
from guestmem.layout.placement import ALIGNED_BASE, hva_assumption
from guestmem.layout.text import decode_json
from guestmem.layout.value import Assumption, Backing, Layout, Slot
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import GIB, KIB, MIB, U64, is_power_of_two

__all__ = ("DEFAULT_VERSION", "ranges", "read", "read_uffd")

DEFAULT_VERSION = (1, 13)
_NEW = ((0, 3 * GIB), (4 * GIB, 256 * GIB), (512 * GIB, U64))
_OLD = ((0, 3328 * MIB), (4 * GIB, U64))
_MAX_MIB = 1 << 40
_NULL = msgspec.Raw(b"null")


class _MachineConfig(msgspec.Struct):
    mem_size_mib: int = 128
    track_dirty_pages: bool = False
    huge_pages: str | None = None


class _Drive(msgspec.Struct):
    socket: str | None = None  # of a vhost-user-blk device


class _Config(msgspec.Struct, rename="kebab"):
    machine_config: _MachineConfig = msgspec.field(default_factory=_MachineConfig)
    memory_hotplug: msgspec.Raw = _NULL
    drives: list[_Drive] = []
    mem_size_mib: int | msgspec.UnsetType = msgspec.field(
        default=msgspec.UNSET, name="mem_size_mib"
    )  # the body of PUT /machine-config


class _Mapping(msgspec.Struct):
    base_host_virt_addr: int
    size: int
    offset: int
    page_size: int | None = None
    page_size_kib: int | None = None


def ranges(size: int, version: tuple[int, int] = DEFAULT_VERSION) -> list[tuple[int, int, int]]:
    """(gpa, size, file offset) of the slots that ``size`` bytes of RAM make."""
    found, offset = [], 0
    for start, end in _NEW if version >= (1, 13) else _OLD:
        part = min(size - offset, end - start)
        if part > 0:
            found.append((start, part, offset))
            offset += part
    return found


def read(source: str, data: bytes, *, version: tuple[int, int] = DEFAULT_VERSION) -> list[Layout]:
    """The memslots of a config; ``version`` decides where RAM is cut."""
    config = decode_json(source, data, _Config)
    machine = config.machine_config
    if config.mem_size_mib is not msgspec.UNSET:
        machine = decode_json(source, data, _MachineConfig)
    if not 0 < machine.mem_size_mib < _MAX_MIB:
        needed = "needed a positive number of MiB"
        raise LayoutError(source, needed, field="machine-config.mem_size_mib", value=machine.mem_size_mib)
    backing = _backing(source, machine)
    notes = _hotplug(config)
    if backing.kind == "anonymous" and any(drive.socket for drive in config.drives):
        backing = Backing("shmem")
        text = (
            "a drive is vhost-user-blk, so all guest memory is one memfd: it counts as possibly 2M, but has "
            "transparent huge pages only where the host's shmem_enabled allows them (by default never)"
        )
        notes.append(Assumption("thp", text, "--thp never"))
    flags = KVM_MEM_LOG_DIRTY_PAGES if machine.track_dirty_pages else 0
    slots = [
        Slot(
            gpa, size, flags=flags, region=f"range {index}", offset=0, backing=backing, assumed_hva=_hva(backing, size)
        )
        for index, (gpa, size, _) in enumerate(ranges(machine.mem_size_mib * MIB, version))
    ]
    return [_layout(source, "firecracker", slots, version, [_placement(slots), *notes])]


def read_uffd(source: str, data: bytes, *, version: tuple[int, int] = DEFAULT_VERSION) -> list[Layout]:
    """The memslots of a restored VM: HVAs are facts, GPAs follow from the sizes and the version."""
    mappings = decode_json(source, data, list[_Mapping])
    placed = ranges(_total(source, mappings), version)
    if [size for _, size, _ in placed] != [mapping.size for mapping in mappings]:
        wanted = ", ".join(f"{size:#x}" for _, size, _ in placed)
        needed = f"sizes do not fit the layout of this version, which would be {wanted}"
        raise LayoutError(source, needed, field="size", remedy="give --firecracker-version")
    slots = []
    for index, ((gpa, size, _), mapping) in enumerate(zip(placed, mappings, strict=True)):
        page = mapping.page_size or mapping.page_size_kib or 4 * KIB
        if not (is_power_of_two(page) and 4 * KIB <= page <= GIB):
            raise LayoutError(source, "needed a page size", field=f"[{index}].page_size", value=page)
        backing = Backing("hugetlb", page) if page > 4 * KIB else Backing("file")
        slots.append(Slot(gpa, size, mapping.base_host_virt_addr, region=f"range {index}", offset=0, backing=backing))
    text = "a private mapping of the snapshot file with 4K pages is taken as never huge"
    return [_layout(source, "firecracker-uffd", slots, version, [Assumption("backing", text, "--backing anonymous")])]


def _total(source: str, mappings: list[_Mapping]) -> int:
    if not mappings or len(mappings) > 64:
        raise LayoutError(source, "needed 1 to 64 mappings", field="handshake", value=len(mappings))
    for index, mapping in enumerate(mappings):
        if not 0 < mapping.size < U64 // 64:
            raise LayoutError(source, "needed a size in bytes", field=f"[{index}].size", value=mapping.size)
        if not 0 <= mapping.base_host_virt_addr < U64:
            where = f"[{index}].base_host_virt_addr"
            raise LayoutError(source, "needed an address", field=where, value=mapping.base_host_virt_addr)
    return sum(mapping.size for mapping in mappings)


def _backing(source: str, machine: _MachineConfig) -> Backing:
    if machine.huge_pages in (None, "None", "Transparent"):
        return Backing("anonymous")
    if machine.huge_pages != "2M":
        needed = 'needed "None", "2M" or "Transparent"'
        raise LayoutError(source, needed, field="machine-config.huge_pages", value=machine.huge_pages)
    if machine.mem_size_mib % 2:
        needed = "needed an even number of MiB with 2M pages"
        raise LayoutError(source, needed, field="machine-config.mem_size_mib", value=machine.mem_size_mib)
    return Backing("hugetlb", 2 * MIB)


def _hva(backing: Backing, size: int) -> int:
    """Releases take what mmap returns: aligned for hugetlb, on recent kernels also for multiples of 2M."""
    return ALIGNED_BASE if backing.kind == "hugetlb" or size % (2 * MIB) == 0 else ALIGNED_BASE + 4 * KIB


def _placement(slots: list[Slot]) -> Assumption:
    odd = any(slot.assumed_hva != ALIGNED_BASE for slot in slots)
    how = "mmap returns it on Linux 6.7 and later: aligned to 2M where the size is a multiple of 2M"
    return hva_assumption([slot.region for slot in slots], how + (", else to 4K only" if odd else ""))


def _hotplug(config: _Config) -> list[Assumption]:
    if bytes(config.memory_hotplug) == bytes(_NULL):
        return []
    return [Assumption("slots", "hotpluggable memory is not a slot until it is plugged: it is taken as unplugged")]


def _layout(source: str, format: str, slots: list[Slot], version: tuple[int, int], notes: list[Assumption]) -> Layout:
    name = f"v{version[0]}.{version[1]}"
    text = f"the source names no version: the layout is that of Firecracker {name}"
    assumed = Assumption("version", text, "--firecracker-version 1.12")
    return Layout(source, format, tuple(slots), assumptions=(assumed, *notes), vmm="firecracker", machine=name)
