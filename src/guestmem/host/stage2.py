"""The page tables that KVM keeps for a guest when the TDP MMU is on, walked from their roots level by level.

An entry (SPTE) is present when bit 11 is set, on AMD and Intel, whatever the hardware calls present; above the last
level bit 7 makes it a leaf. All tables of a level are read before those below them, 512 at a time, and no lock is
taken: what changes meanwhile shows as a difference between the leaves that were found and KVM's own count.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from guestmem.errors import BackendUnavailable
from guestmem.host.kernel import KernelView
from guestmem.host.leaves import ENTRIES, FRAME, LARGE, Leaves, shared_frames
from guestmem.host.memory import PAGE, u32, u64, walk_list
from guestmem.host.slots import KernelSlot

__all__ = ("Root", "find_roots", "walk_roots")

_PRESENT, _LARGE = np.uint64(1 << 11), np.uint64(1 << 7)
_PHYSICAL = 0x000F_FFFF_FFFF_F000  # bits 12 to 51
_BATCH = 512  # tables read at once: 2 MiB
_MOST_ROOTS = 64


@dataclass(frozen=True, slots=True)
class Root:
    """The root of one address space's tables: the virtual address of its table, and how many levels there are."""

    table: int
    level: int
    address_space: int


def find_roots(kernel: KernelView, vm: int) -> list[Root]:
    """The valid roots of the VM itself; those of nested guests and those being torn down are left out."""
    structs = kernel.structs
    if not structs.has("kvm.arch.tdp_mmu_roots"):
        return []
    head = vm + structs.offset("kvm.arch.tdp_mmu_roots")
    found = []
    for page in walk_list(kernel.memory, head, structs.offset("kvm_mmu_page.link"), _MOST_ROOTS):
        data = kernel.memory.read(page, structs.sizes["kvm_mmu_page"])
        role = u32(data, structs.offset("kvm_mmu_page.role"))
        if not (_field(kernel, role, "invalid") or _field(kernel, role, "guest_mode")):
            table = u64(data, structs.offset("kvm_mmu_page.spt"))
            found.append(Root(table, _field(kernel, role, "level"), _field(kernel, role, "smm")))
    return found


def walk_roots(kernel: KernelView, vm: int, roots: list[Root], slots: tuple[KernelSlot, ...]) -> Leaves:
    """Every leaf below the roots."""
    leaves = Leaves.empty(slots)
    leaves.how = "tdp"
    base = _direct_map(kernel, vm, roots)
    for root in roots:
        _walk(kernel, root, base, slots, leaves)
    return leaves


def _walk(kernel: KernelView, root: Root, base: int, slots: tuple[KernelSlot, ...], leaves: Leaves) -> None:
    space = root.address_space
    shared = shared_frames(slots, space)
    top = max((slot.end for slot in slots if slot.address_space == space), default=0) // PAGE
    physical = np.uint64(_PHYSICAL & ~kernel.encryption)
    tables, frames = np.array([root.table], np.uint64), np.array([0], np.uint64)
    for level in range(root.level, 1, -1):
        below, numbers = [], []
        span = np.arange(ENTRIES, dtype=np.uint64) << np.uint64(9 * (level - 1))
        for entries, first in _batches(kernel, tables, frames, leaves):
            gfns = first[:, None] + span
            present = (entries & _PRESENT) != 0
            leaf = present & ((entries & _LARGE) != 0)
            _note_leaves(leaves, space, level, gfns[leaf])
            table = present & ~leaf & (gfns < top)  # what is above every slot is no guest's
            below.append((entries[table] & physical) + np.uint64(base))
            numbers.append(gfns[table])
        tables = np.concatenate(below) if below else tables[:0]
        frames = np.concatenate(numbers) if numbers else frames[:0]
    _last_level(kernel, space, tables, frames, shared, leaves)


def _last_level(
    kernel: KernelView,
    space: int,
    tables: NDArray[np.uint64],
    frames: NDArray[np.uint64],
    shared: frozenset[int],
    leaves: Leaves,
) -> None:
    """The tables of 4K entries: counted, not listed."""
    places, counts = [], []
    odd = np.array(sorted(shared), np.uint64)
    for entries, first in _batches(kernel, tables, frames, leaves):
        present = (entries & _PRESENT) != 0
        number = first // np.uint64(ENTRIES)
        each = np.count_nonzero(present, axis=1)
        leaves.count(small=int(each.sum()))
        mine = np.isin(number, odd)
        for index in np.flatnonzero(mine):
            leaves.add_shared(space, int(number[index]), present[index])
        places.append(number[~mine])
        counts.append(each[~mine])
    if places:
        leaves.add_small(space, np.concatenate(places), np.concatenate(counts))


def _batches(
    kernel: KernelView, tables: NDArray[np.uint64], frames: NDArray[np.uint64], leaves: Leaves
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.uint64]]]:
    """The entries of tables, 512 tables at a time, and the first frame number that each table maps."""
    for start in range(0, len(tables), _BATCH):
        some = tables[start : start + _BATCH]
        data, failed = kernel.memory.read_pages(some.tolist())
        leaves.tables += len(some)
        leaves.unreadable += len(failed)  # their entries are zeros: nothing is present
        yield np.frombuffer(data, "<u8").reshape(-1, ENTRIES), frames[start : start + _BATCH]


def _note_leaves(leaves: Leaves, space: int, level: int, gfns: NDArray[np.uint64]) -> None:
    size = {2: FRAME, 3: LARGE}.get(level)
    if size is None or not len(gfns):
        return  # KVM maps nothing larger than 1G
    leaves.add_large(space, size, gfns // np.uint64(size // PAGE))
    leaves.count(big=len(gfns) if level == 2 else 0, giant=len(gfns) if level == 3 else 0)


def _field(kernel: KernelView, role: int, name: str) -> int:
    """A field of the role word; 0 where this kernel has none of that name."""
    first, width = kernel.structs.role.get(name, (0, 0))
    return role >> first & ((1 << width) - 1)


def _direct_map(kernel: KernelView, vm: int, roots: list[Root]) -> int:
    """Where physical memory is mapped; from a vCPU's root, whose physical address it keeps, if nothing else tells."""
    if kernel.direct_map is not None:
        return kernel.direct_map
    for vcpu in _vcpus(kernel, vm):
        physical = kernel.pointer(vcpu + kernel.structs.offset("kvm_vcpu.arch.root_mmu.root.hpa"))
        for root in roots:
            base = root.table - physical
            if physical <= _PHYSICAL and base > 0 and base % LARGE == 0:
                return base
    raise BackendUnavailable("page tables cannot be found: neither a symbol nor a vCPU tells the direct map's address")


def _vcpus(kernel: KernelView, vm: int) -> list[int]:
    """The first vCPUs of a VM, out of its xarray: one entry by itself, or a node of 64."""
    structs = kernel.structs
    head = kernel.pointer(vm + structs.offset("kvm.vcpu_array.xa_head"))
    if head & 3 != 2:
        return [head] if head else []
    count = structs.lengths["xa_node.slots"]
    data = kernel.memory.read(head - 2 + structs.offset("xa_node.slots"), 8 * count)
    return [entry for entry in struct.unpack(f"<{count}Q", data) if entry and entry & 3 == 0]
