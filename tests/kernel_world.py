"""A kernel made up in memory: one struct kvm after the other with slots, verdicts and page tables as a test wants them.

The shapes are invented, and not those of any kernel, so that code that had them built in would fail here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from guestmem.host.kernel import KernelView
from guestmem.host.mappings import HostMapping as HostMapping
from guestmem.host.memory import RecordedMemory
from guestmem.host.structs import KernelStructs

P, MIB, GIB = 4096, 1 << 20, 1 << 30
DIRECT_MAP = 0xFFFF_9000_0000_0000
VM_LIST = 0xFFFF_FFFF_C000_0000
PRESENT, HUGE = 1 << 11, 1 << 7
SHAPES = KernelStructs(
    {
        "kvm.vm_list": 16,
        "kvm.memslots": 32,
        "kvm.userspace_pid": 48,
        "kvm.nr_memslot_pages": 56,
        "kvm.stat.pages_4k": 64,
        "kvm.stat.pages_2m": 72,
        "kvm.stat.pages_1g": 80,
        "kvm.arch.tdp_mmu_roots": 96,
        "kvm_memslots.generation": 8,
        "kvm_memslots.node_idx": 16,
        "kvm_memslots.id_hash": 24,
        "kvm_memory_slot.id_node": 8,
        "kvm_memory_slot.base_gfn": 40,
        "kvm_memory_slot.npages": 48,
        "kvm_memory_slot.userspace_addr": 56,
        "kvm_memory_slot.flags": 64,
        "kvm_memory_slot.id": 68,
        "kvm_memory_slot.as_id": 70,
        "kvm_memory_slot.arch.lpage_info": 72,
        "kvm_memory_slot.arch.rmap": 88,
        "kvm_mmu_page.link": 8,
        "kvm_mmu_page.role": 24,
        "kvm_mmu_page.spt": 32,
    },
    {"kvm": 128, "kvm_memory_slot": 112, "kvm_mmu_page": 40, "hlist_node": 16, "kvm_lpage_info": 4, "kvm_rmap_head": 8},
    {"kvm.memslots": 2, "kvm_memslots.id_hash": 4},
    {"level": (3, 4), "invalid": (9, 1), "guest_mode": (10, 1), "smm": (16, 8)},
)


@dataclass
class Slot:
    """A slot; ``disallowed`` are the numbers of KVM's verdict by level and frame, from the slot's first frame on."""

    gpa: int
    size: int
    hva: int
    flags: int = 0
    number: int = 0
    space: int = 0
    disallowed: Mapping[tuple[int, int], int] = field(default_factory=dict)
    rmaps: bool = False
    mapped: frozenset[tuple[int, int]] = frozenset()  # (level, frame from the slot's first on), for reverse maps


class World:
    """Kernel memory that grows."""

    def __init__(self) -> None:
        self.ranges: dict[int, bytes] = {}
        self.heads: list[int] = []
        self._next = DIRECT_MAP + GIB

    def place(self, data: bytes, at: int | None = None) -> int:
        address = self._next if at is None else at
        if at is None:
            self._next += (len(data) + P - 1) // P * P
        self.ranges[address] = data
        return address

    def kernel(self) -> KernelView:
        chain = [VM_LIST, *(head + SHAPES.offset("kvm.vm_list") for head in self.heads), VM_LIST]
        for here, there in pairwise(chain):
            self.ranges[here] = there.to_bytes(8, "little")
        return KernelView(RecordedMemory(self.ranges), SHAPES, {"vm_list": VM_LIST}, DIRECT_MAP)

    def add_vm(
        self, slots: list[Slot], root: int | None = None, counted: tuple[int, int, int] = (0, 0, 0), pid: int = 7
    ) -> int:
        """A VM whose TDP root is the table at ``root``, if any; the address of its struct kvm."""
        spaces = [self._slot_set([slot for slot in slots if slot.space == space]) for space in (0, 1)]
        vm = self._next
        self._next += P
        pages = sum(slot.size for slot in slots) // P
        fields = {
            "kvm.userspace_pid": struct.pack("<i", pid),
            "kvm.nr_memslot_pages": struct.pack("<Q", pages),
            "kvm.memslots": struct.pack("<QQ", *spaces),
            "kvm.stat.pages_4k": struct.pack("<QQQ", *counted),
        }
        for name, data in fields.items():
            self.place(data, vm + SHAPES.offset(name))
        head = vm + SHAPES.offset("kvm.arch.tdp_mmu_roots")
        page = 0 if root is None else self._root(root, head)
        self.place(page.to_bytes(8, "little"), head)
        self.heads.append(vm)
        return vm

    def table(self, entries: Mapping[int, int]) -> int:
        """A page table; its virtual address."""
        words = [0] * 512
        for index, entry in entries.items():
            words[index] = entry
        return self.place(struct.pack("<512Q", *words))

    def link(self, table: int) -> int:
        """The entry that refers to a table."""
        return (table - DIRECT_MAP) | PRESENT | 7

    def _root(self, table: int, head: int) -> int:
        page = self._next
        data = bytearray(SHAPES.sizes["kvm_mmu_page"])
        struct.pack_into("<Q", data, SHAPES.offset("kvm_mmu_page.link"), head)
        struct.pack_into("<I", data, SHAPES.offset("kvm_mmu_page.role"), 4 << 3)
        struct.pack_into("<Q", data, SHAPES.offset("kvm_mmu_page.spt"), table)
        self.place(bytes(data))
        return page + SHAPES.offset("kvm_mmu_page.link")

    def _slot_set(self, slots: list[Slot]) -> int:
        heads = [0] * 4
        for slot in slots:
            bucket = slot.number % 4
            heads[bucket] = self._slot(slot, heads[bucket])
        active = bytearray(24 + 32)
        struct.pack_into("<QI", active, SHAPES.offset("kvm_memslots.generation"), 6, 1)
        struct.pack_into("<4Q", active, SHAPES.offset("kvm_memslots.id_hash"), *heads)
        return self.place(bytes(active))

    def _slot(self, slot: Slot, following: int) -> int:
        data = bytearray(SHAPES.sizes["kvm_memory_slot"])
        node = SHAPES.offset("kvm_memory_slot.id_node") + 16  # the second of two: node_idx is 1
        struct.pack_into("<Q", data, node, following)
        base = SHAPES.offset("kvm_memory_slot.base_gfn")
        struct.pack_into("<QQQ", data, base, slot.gpa // P, slot.size // P, slot.hva)
        struct.pack_into("<IhH", data, SHAPES.offset("kvm_memory_slot.flags"), slot.flags, slot.number, slot.space)
        for level, size in ((2, 2 * MIB), (3, GIB)):
            numbers = [slot.disallowed.get((level, frame), 0) for frame in range(_frames(slot, size))]
            info = self.place(struct.pack(f"<{len(numbers)}I", *numbers))
            struct.pack_into("<Q", data, SHAPES.offset("kvm_memory_slot.arch.lpage_info") + 8 * (level - 2), info)
        if slot.rmaps:
            for level, size in ((1, P), (2, 2 * MIB), (3, GIB)):
                words = [int((level, frame) in slot.mapped) for frame in range(_frames(slot, size))]
                rmap = self.place(struct.pack(f"<{len(words)}Q", *words))
                struct.pack_into("<Q", data, SHAPES.offset("kvm_memory_slot.arch.rmap") + 8 * (level - 1), rmap)
        return self.place(bytes(data)) + node


def _frames(slot: Slot, size: int) -> int:
    return (slot.gpa + slot.size - 1) // size - slot.gpa // size + 1


class WorldProcesses:
    """One process whose memory is one mapping, which the host maps huge everywhere or nowhere."""

    def __init__(self, mapping: HostMapping, huge: bool) -> None:
        self._mapping, self._huge = mapping, huge

    def process_of(self, thread: int) -> int | None:
        return thread

    def name(self, pid: int) -> str:
        return "made-up"

    def vmm(self, pid: int) -> str:
        return "qemu"

    def vm_descriptors(self, pid: int | None) -> Iterator[tuple[int, int]]:
        return iter(())

    def mappings(self, pid: int) -> list[HostMapping]:
        return [self._mapping]

    def huge_pieces(self, pid: int, start: int, end: int) -> list[tuple[int, int]] | None:
        return [(start, end)] if self._huge else []
