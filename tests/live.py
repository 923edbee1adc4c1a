"""Looks at hosts that were recorded: tests/data/live/README.md says where from."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guestmem.host.kernel import KernelView
from guestmem.host.mappings import HostMapping, ThpSettings, parse_smaps
from guestmem.host.memory import RecordedMemory
from guestmem.host.structs import KernelStructs

DATA = Path(__file__).parent / "data" / "live"
KERNELS = {"6.1": "kvm61", "6.12": "kvm612", "7.2": "kvm72", "7.3": "kvm73"}
STAGES = ("A", "B", "C", "E", "H")
# Sizes that the captures do not name; their reads show them: 4 bytes for each frame of lpage_info, 16 for a list node.
SIZES = {"hlist_node": 16, "kvm_lpage_info": 4, "kvm_rmap_head": 8}
MADVISE = ThpSettings(anonymous=None, shmem=False)  # transparent_hugepage=madvise, shmem's default


@dataclass(frozen=True)
class Look:
    """One stage on one kernel: what can be read, and what was seen by other means (``vm``)."""

    kernel: KernelView
    processes: RecordedProcesses
    vm: dict[str, Any]


class RecordedProcesses:
    """The one process of a recording."""

    def __init__(self, vm: dict[str, Any]) -> None:
        self._vm = vm

    def process_of(self, thread: int) -> int | None:
        return thread

    def name(self, pid: int) -> str:
        return "kvmstory"

    def vmm(self, pid: int) -> str:
        return ""

    def vm_descriptors(self, pid: int | None) -> Iterator[tuple[int, int]]:
        return iter(())

    def mappings(self, pid: int) -> list[HostMapping]:
        lines = []
        for place, fields in self._vm["smaps"].items():
            lines.append(f"{place} rw-p 00000000 00:00 1 {fields['path']}")
            lines += [f"{name}: {value}" for name, value in fields.items() if name != "path"]
        return list(parse_smaps("\n".join(lines), MADVISE))

    def huge_pieces(self, pid: int, start: int, end: int) -> list[tuple[int, int]] | None:
        slot = next(slot for slot in self._vm["slots"] if (slot["hva"], slot["hva"] + slot["size"]) == (start, end))
        return None if slot["host_huge"] is None else [tuple(piece) for piece in slot["host_huge"]]


def look(kernel: str, stage: str) -> Look:
    """The recording of a stage."""
    data = json.loads(gzip.decompress((DATA / f"{KERNELS[kernel]}-live-reads.json.gz").read_bytes()))
    recorded = data["stages"][stage]
    (vm,) = recorded["vms"]
    memory = RecordedMemory({int(address, 16): bytes.fromhex(read) for address, read in recorded["reads"].items()})
    lengths = {
        "kvm.memslots": data["counts"]["address_spaces"],
        "kvm_memslots.id_hash": data["counts"]["id_hash"],
    }
    role = {name: (first, width) for name, (first, width) in data["role_bits"].items()}
    structs = KernelStructs(data["offsets"], data["sizes"] | SIZES, lengths, role)
    symbols = {"vm_list": int(data["vm_list"], 16)}
    return Look(
        KernelView(memory, structs, symbols, int(data["page_offset_base_value"], 16)), RecordedProcesses(vm), vm
    )
