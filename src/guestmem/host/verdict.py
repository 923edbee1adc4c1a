"""For each huge frame of a slot: may KVM map it whole, could the host back it so, is it mapped smaller, and why.

KVM's own verdict is kept in lpage_info, one number for each 2M and each 1G frame that the slot touches: 0 allows a
leaf. Frames that the slot fills only in part, and all frames when GPA and HVA differ modulo the page, count 1; every
shadowed guest page table in the frame counts 1; the highest bit says that private and shared pages are mixed
(kvm_alloc_memslot_metadata, account_shadowed, kvm_arch_post_set_memory_attributes). Dirty logging and what backs the
memory are not in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from guestmem.host.backing import SlotBacking
from guestmem.host.kernel import KernelView
from guestmem.host.leaves import ENTRIES, FRAME, LARGE, SlotLeaves, frames_of
from guestmem.host.memory import PAGE
from guestmem.host.slots import KernelSlot
from guestmem.host.strip import strip_of

__all__ = ("LossCause", "LostBytes", "MappedVerdict", "judge_slot")

_MIXED = np.uint32(1 << 31)  # KVM_LPAGE_MIXED_FLAG
_DIRTY_LOG = 1 << 0
_LEVELS = (FRAME, LARGE)


class LossCause(StrEnum):
    """Why mapped bytes are mapped with smaller pages; the first that holds of a frame, in this order."""

    MIXED = "mixed"
    HEAD = "head"
    TAIL = "tail"
    HVA = "hva"
    TRACKED = "tracked"
    DIRTY_LOG = "dirty_log"
    ORDER_0 = "order_0"
    BACKING = "backing"
    SPLIT = "split"
    NX = "nx"
    UNKNOWN = "unknown"

    @property
    def text(self) -> str:
        """For people, as the end of "mapped by 4K: "."""
        return _TEXTS[self]


_TEXTS = {
    LossCause.MIXED: "private and shared pages in one frame",
    LossCause.HEAD: "the slot starts inside the frame",
    LossCause.TAIL: "the slot ends inside the frame",
    LossCause.HVA: "GPA and HVA not congruent",
    LossCause.TRACKED: "the guest's page tables are shadowed here",
    LossCause.DIRTY_LOG: "dirty logging",
    LossCause.ORDER_0: "guest_memfd hands out single pages",
    LossCause.BACKING: "the host maps 4K here",
    LossCause.SPLIT: "could be larger now: split earlier, or not touched since",
    LossCause.NX: "the NX huge page workaround: the guest ran code here",
    LossCause.UNKNOWN: "what the host maps here cannot be told",
}


@dataclass(frozen=True, slots=True)
class LostBytes:
    """``size`` bytes that are mapped with smaller pages than ``page_size``."""

    page_size: int
    cause: LossCause
    size: int


@dataclass(frozen=True, slots=True)
class MappedVerdict:
    """Bytes of one slot: allowed by KVM's own verdict and possible as things are set, for 4K, 2M and 1G or larger.

    lost: of what is mapped, for 2M, and for 1G where the host backs the slot by 1G pages. strip: the three rows
    possible, host and mapped of ``guestmem.host.strip``, if they were asked for.
    """

    allowed: tuple[int, int, int]
    possible: tuple[int, int, int]
    lost: tuple[LostBytes, ...]
    strip: tuple[str, str, str] | None = None


def judge_slot(
    kernel: KernelView,
    slot: KernelSlot,
    leaves: SlotLeaves,
    backing: SlotBacking,
    private: NDArray[np.int64] | None = None,
    *,
    strip: bool = False,
) -> MappedVerdict:
    """Read KVM's verdicts for the slot and set them against what is mapped.

    private: bytes of each 2M frame that come from the slot's guest_memfd; None: all of them, if it has one.
    """
    allowed, possible, lost = [slot.size], [slot.size], []
    could, has = (np.ones(frames_of(slot, FRAME), np.int64) for _ in range(2))
    for level, size in enumerate(_LEVELS):
        verdict = _verdict(kernel, slot, level, size)
        free = verdict == 0
        allowed.append(int(np.count_nonzero(free)) * size)
        able = backing.able(slot, size)
        of_file = _of_file(slot, private, size)
        now = free & able.possible & (not slot.flags & _DIRTY_LOG) & ~of_file
        possible.append(int(np.count_nonzero(now)) * size)
        if size == FRAME or backing.page_size >= size:
            lost += _lost(slot, size, verdict, _smaller(slot, leaves, size), able.now, able.known, of_file)
        could[_by_small_frames(slot, size, now)] = level + 2
        has[_by_small_frames(slot, size, able.now)] = level + 2
    rows = (strip_of(could), strip_of(has), strip_of(_mapped_levels(slot, leaves))) if strip else None
    return MappedVerdict(
        (allowed[0], allowed[1], allowed[2]), (possible[0], possible[1], possible[2]), tuple(lost), rows
    )


def _verdict(kernel: KernelView, slot: KernelSlot, level: int, size: int) -> NDArray[np.uint32]:
    width = kernel.structs.sizes["kvm_lpage_info"]
    frames = frames_of(slot, size)
    if not slot.lpage_info[level]:
        return np.ones(frames, np.uint32)
    data = kernel.memory.read(slot.lpage_info[level], width * frames)
    return np.frombuffer(data, "<u4").reshape(frames, -1)[:, 0]


def _smaller(slot: KernelSlot, leaves: SlotLeaves, size: int) -> NDArray[np.int64]:
    """Bytes of each frame of ``size`` that are mapped by smaller leaves."""
    small = leaves.small * PAGE
    return small if size == FRAME else _by_large_frames(slot, small + leaves.big * FRAME)


def _of_file(slot: KernelSlot, private: NDArray[np.int64] | None, size: int) -> NDArray[np.bool_]:
    """Which frames of ``size`` have pages of the slot's guest_memfd."""
    if private is None or not slot.guest_memfd:
        return np.full(frames_of(slot, size), slot.guest_memfd)
    return (private if size == FRAME else _by_large_frames(slot, private)) > 0


def _by_large_frames(slot: KernelSlot, small: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums over 1G frames of what is said of 2M frames."""
    head = slot.gpa // FRAME % ENTRIES
    below = np.zeros(frames_of(slot, LARGE) * ENTRIES, np.int64)
    below[head : head + len(small)] = small
    sums: NDArray[np.int64] = below.reshape(-1, ENTRIES).sum(axis=1)
    return sums


def _by_small_frames(slot: KernelSlot, size: int, frames: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What holds of frames of ``size``, said of each 2M frame that the slot touches."""
    if size == FRAME:
        return frames
    head = slot.gpa // FRAME % ENTRIES
    return np.repeat(frames, ENTRIES)[head : head + frames_of(slot, FRAME)]


def _mapped_levels(slot: KernelSlot, leaves: SlotLeaves) -> NDArray[np.int64]:
    """For each 2M frame the level of what maps it: 0 nothing, 1 some 4K, 2 a 2M leaf, 3 a 1G leaf."""
    levels = (leaves.small > 0).astype(np.int64)
    levels[leaves.big] = 2
    levels[_by_small_frames(slot, LARGE, leaves.giant)] = 3
    return levels


def _lost(
    slot: KernelSlot,
    size: int,
    verdict: NDArray[np.uint32],
    smaller: NDArray[np.int64],
    huge: NDArray[np.bool_],
    known: NDArray[np.bool_],
    of_file: NDArray[np.bool_],
) -> list[LostBytes]:
    """The bytes of each cause. huge and known: whether the host maps the frame so, and whether that can be told."""
    frames = len(verdict)
    head, tail = np.zeros(frames, np.bool_), np.zeros(frames, np.bool_)
    head[0], tail[-1] = slot.gpa % size != 0, slot.end % size != 0
    everywhere = np.ones(frames, np.bool_)
    congruent = (slot.gpa - slot.hva) % size == 0
    holds = {
        LossCause.MIXED: (verdict & _MIXED) != 0,
        LossCause.HEAD: head,
        LossCause.TAIL: tail,
        LossCause.HVA: everywhere & (not congruent) & (verdict != 0),
        LossCause.TRACKED: verdict != 0,
        LossCause.DIRTY_LOG: everywhere & bool(slot.flags & _DIRTY_LOG),
        LossCause.ORDER_0: of_file,
        LossCause.BACKING: known & ~huge,
        LossCause.SPLIT: huge,
        LossCause.UNKNOWN: everywhere,
    }
    left = smaller > 0
    found = []
    for cause, where in holds.items():
        bytes_ = int(smaller[left & where].sum())
        if bytes_:
            found.append(LostBytes(size, cause, bytes_))
        left = left & ~where
    return found
