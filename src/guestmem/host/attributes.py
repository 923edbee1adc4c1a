"""Which pages of a VM are private: kvm->mem_attr_array, an xarray of attributes by guest frame number.

A private page of a slot with a guest_memfd is mapped from the file, a shared one from userspace_addr
(kvm_mem_is_private). The array is read without its lock, as everything here is.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from guestmem.host.kernel import KernelView
from guestmem.host.leaves import FRAME, frames_of
from guestmem.host.memory import PAGE, Unreadable
from guestmem.host.slots import KernelSlot
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE

__all__ = ("private_bytes",)

_HEAD = "kvm.mem_attr_array.xa_head"
_SMALLEST_NODE = 4096  # internal entries below are no nodes (xa_is_node)
_PAGES = FRAME // PAGE
_BITS = 64
_MOST_NODES = 1 << 27  # entries of 512 GiB, one by one: an array that never ends is one that changes


def private_bytes(kernel: KernelView, vm: int, slot: KernelSlot) -> NDArray[np.int64] | None:
    """Bytes of each 2M frame that the slot touches which are private; None where this kernel has no such attributes."""
    if not kernel.structs.has(_HEAD):
        return None
    found = np.zeros(frames_of(slot, FRAME), np.int64)
    start = slot.gpa // FRAME
    head = kernel.pointer(vm + kernel.structs.offset(_HEAD))
    for gfn, pages in _private(kernel, head, slot.gpa // PAGE, slot.end // PAGE):
        found[gfn * PAGE // FRAME - start] += pages * PAGE
    return found


def _private(kernel: KernelView, head: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    """A guest frame number and how many pages from there on are private, in [first, last), each within one 2M frame."""
    structs = kernel.structs
    count, slots, shift = (
        structs.lengths["xa_node.slots"],
        structs.offset("xa_node.slots"),
        structs.offset("xa_node.shift"),
    )
    waiting = [(head, 0, 1)]  # an entry, and the frames that it stands for: from where on, and how many
    for _ in range(_MOST_NODES):
        if not waiting:
            return
        entry, base, width = waiting.pop()
        if entry & 1:
            yield from _pieces(entry, max(base, first), min(base + width, last))
        elif entry & 3 == 2 and entry > _SMALLEST_NODE:
            node = kernel.memory.read(entry - 2, slots + 8 * count)
            step = 1 << node[shift] % _BITS
            entries = struct.unpack_from(f"<{count}Q", node, slots)
            below = ((each, base + index * step, step) for index, each in enumerate(entries) if each)
            waiting += [each for each in below if each[1] < last and each[1] + step > first]
    raise Unreadable(head, _MOST_NODES)


def _pieces(entry: int, first: int, last: int) -> Iterator[tuple[int, int]]:
    if entry >> 1 & KVM_MEMORY_ATTRIBUTE_PRIVATE:
        while first < last:
            end = min(last, (first // _PAGES + 1) * _PAGES)
            yield first, end - first
            first = end
