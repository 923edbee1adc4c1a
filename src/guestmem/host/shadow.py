"""What is mapped where KVM uses shadow page tables: its reverse map, one word for each frame of a slot and level.

A word is not zero when some shadow entry of that level maps the frame (struct kvm_rmap_head). With the TDP MMU there
are no such words unless nested guests run. Costs 2 MiB of reading for each GiB.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from guestmem.host.kernel import KernelView
from guestmem.host.leaves import ENTRIES, FRAME, LARGE, Leaves, shared_frames
from guestmem.host.memory import PAGE
from guestmem.host.slots import KernelSlot

__all__ = ("read_reverse_maps",)

_CHUNK = 1 << 18  # frames read at once: 2 MiB, a GiB of guest memory


def read_reverse_maps(kernel: KernelView, slots: tuple[KernelSlot, ...]) -> Leaves:
    """Every frame that is mapped by each level."""
    leaves = Leaves.empty(slots)
    for slot in slots:
        for level, size in enumerate((PAGE, FRAME, LARGE)):
            if slot.rmap[level]:
                leaves.how = "rmap"
                _read(kernel, slot, level, size, leaves)
    return leaves


def _read(kernel: KernelView, slot: KernelSlot, level: int, size: int, leaves: Leaves) -> None:
    first, last = slot.gpa // size, (slot.end - 1) // size
    width = kernel.structs.sizes["kvm_rmap_head"]
    start = first
    while start <= last:
        end = min(last + 1, (start // _CHUNK + 1) * _CHUNK)  # cut where frames of 2M are not
        data = kernel.memory.read(slot.rmap[level] + width * (start - first), width * (end - start))
        mapped = np.frombuffer(data, "<u8").reshape(end - start, -1)[:, 0] != 0
        if level == 0:
            _note_small(slot, start, mapped, leaves)
        else:
            frames = np.flatnonzero(mapped).astype(np.uint64) + np.uint64(start)
            leaves.add_large(slot.address_space, size, frames)
            leaves.count(big=len(frames) if size == FRAME else 0, giant=len(frames) if size == LARGE else 0)
        leaves.tables += -(-len(data) // PAGE)
        start = end


def _note_small(slot: KernelSlot, start: int, mapped: NDArray[np.bool_], leaves: Leaves) -> None:
    """4K frames from gfn ``start`` on."""
    leaves.count(small=int(np.count_nonzero(mapped)))
    head = start % ENTRIES
    padded = np.zeros(-(-(head + len(mapped)) // ENTRIES) * ENTRIES, np.bool_)
    padded[head : head + len(mapped)] = mapped
    frames = padded.reshape(-1, ENTRIES)
    first = start // ENTRIES
    shared = shared_frames((slot,), slot.address_space)
    numbers = np.arange(first, first + len(frames), dtype=np.uint64)
    mine = np.array([first + index in shared for index in range(len(frames))], np.bool_)
    for index in np.flatnonzero(mine):
        leaves.add_shared(slot.address_space, first + int(index), frames[index])
    leaves.add_small(slot.address_space, numbers[~mine], np.count_nonzero(frames, axis=1)[~mine])
