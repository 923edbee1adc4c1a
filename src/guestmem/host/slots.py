"""The memslots of a VM, out of the kernel's own structures, without taking its lock.

KVM keeps two sets of memslots for each address space and changes the inactive one; the active set is found through a
pointer that changes with every update (kvm_swap_active_memslots). A set that was read is kept only if pointer and
generation are the same before and after, no update was going on, no two slots overlap, and the pages add up to what
the VM counts; otherwise it is read again, and after some tries given up.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise

from guestmem.host.kernel import KernelView
from guestmem.host.memory import PAGE, Unreadable, u32, u64

__all__ = ("GuestMemfdBinding", "KernelSlot", "SlotsChanging", "read_slots")

_TRIES = 20
_UPDATING = 1 << 63  # KVM_MEMSLOT_GEN_UPDATE_IN_PROGRESS
_USER_FLAGS = 0xFFFF  # the rest are KVM's own (KVM_MEMSLOT_INVALID and others)
_GUEST_MEMFD = 1 << 2
_MOST_SLOTS = 1 << 16


class SlotsChanging(Exception):
    """The slots changed at every try: nothing was read that holds together."""


@dataclass(frozen=True, slots=True)
class GuestMemfdBinding:
    """The file behind a slot: inode number, size and the slot's offset in it, bytes."""

    inode: int
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class KernelSlot:
    """One memslot. gpa, size, hva in bytes; number without address space; flags as user space set them.

    lpage_info and rmap are kernel addresses: of the verdicts for 2M and 1G frames, and of what maps 4K, 2M, 1G frames.
    binding is None without a guest_memfd, or when the file was closed.
    """

    number: int
    address_space: int
    gpa: int
    size: int
    hva: int
    flags: int
    lpage_info: tuple[int, int]
    rmap: tuple[int, int, int]
    binding: GuestMemfdBinding | None = None

    @property
    def end(self) -> int:
        """One past the last guest-physical byte."""
        return self.gpa + self.size

    @property
    def guest_memfd(self) -> bool:
        """KVM_MEM_GUEST_MEMFD."""
        return bool(self.flags & _GUEST_MEMFD)


def read_slots(kernel: KernelView, vm: int, tries: int = _TRIES) -> tuple[KernelSlot, ...]:
    """The slots of the struct kvm at ``vm``, ascending by address space and GPA; SlotsChanging when given up."""
    for _ in range(tries):
        try:
            slots = _try(kernel, vm)
        except Unreadable:  # a freed set: an update went by
            continue
        if slots is not None:
            return slots
    raise SlotsChanging(f"the slots changed during each of {tries} looks")


def _try(kernel: KernelView, vm: int) -> tuple[KernelSlot, ...] | None:
    structs = kernel.structs
    pages = vm + structs.offset("kvm.nr_memslot_pages")
    before = kernel.pointer(pages)
    slots: list[KernelSlot] = []
    for space in range(structs.lengths["kvm.memslots"]):
        found = _space(kernel, vm + structs.offset("kvm.memslots") + 8 * space)
        if found is None:
            return None
        slots += found
    slots.sort(key=lambda slot: (slot.address_space, slot.gpa))
    overlap = any(a.address_space == b.address_space and a.end > b.gpa for a, b in pairwise(slots))
    total = sum(slot.size for slot in slots) // PAGE
    return None if overlap or total != before or kernel.pointer(pages) != before else tuple(slots)


def _space(kernel: KernelView, pointer: int) -> list[KernelSlot] | None:
    """The slots of one address space; None when an update went on."""
    memory, structs = kernel.memory, kernel.structs
    active = kernel.pointer(pointer)
    if not active:
        return []
    generation = kernel.pointer(active + structs.offset("kvm_memslots.generation"))
    index = u32(memory.read(active + structs.offset("kvm_memslots.node_idx"), 4))
    if generation & _UPDATING or index > 1:
        return None
    buckets = structs.lengths["kvm_memslots.id_hash"]
    heads = struct.unpack(f"<{buckets}Q", memory.read(active + structs.offset("kvm_memslots.id_hash"), 8 * buckets))
    node = structs.offset("kvm_memory_slot.id_node") + structs.sizes["hlist_node"] * index
    size = structs.sizes["kvm_memory_slot"]
    found: list[KernelSlot] = []
    for head in heads:
        at = head
        while at:
            if len(found) > _MOST_SLOTS:
                return None
            data = memory.read(at - node, size)
            found.append(_slot(kernel, data))
            at = u64(data, node)
    same = kernel.pointer(pointer) == active
    return found if same and kernel.pointer(active + structs.offset("kvm_memslots.generation")) == generation else None


def _slot(kernel: KernelView, data: bytes) -> KernelSlot:
    def at(name: str) -> int:
        return kernel.structs.offset(f"kvm_memory_slot.{name}")

    info, rmap = at("arch.lpage_info"), at("arch.rmap")
    flags = u32(data, at("flags")) & _USER_FLAGS
    number, space = struct.unpack_from("<h", data, at("id"))[0], struct.unpack_from("<H", data, at("as_id"))[0]
    return KernelSlot(
        number,
        space,
        u64(data, at("base_gfn")) * PAGE,
        u64(data, at("npages")) * PAGE,
        u64(data, at("userspace_addr")),
        flags,
        (u64(data, info), u64(data, info + 8)),
        (u64(data, rmap), u64(data, rmap + 8), u64(data, rmap + 16)),
        _binding(kernel, data) if flags & _GUEST_MEMFD else None,
    )


def _binding(kernel: KernelView, data: bytes) -> GuestMemfdBinding | None:
    structs = kernel.structs
    if not structs.has("kvm_memory_slot.gmem.file"):
        return None
    file = u64(data, structs.offset("kvm_memory_slot.gmem.file"))
    if not file:
        return None
    inode = kernel.pointer(file + structs.offset("file.f_inode"))
    return GuestMemfdBinding(
        kernel.pointer(inode + structs.offset("inode.i_ino")),
        kernel.pointer(inode + structs.offset("inode.i_size")),
        u64(data, structs.offset("kvm_memory_slot.gmem.pgoff")) * PAGE,
    )
