"""The state that actors share, small enough to be a dictionary key, and the operations on it that several steps need.

Frames, file indexes and pages are small integers; there is one huge leaf size of ``Setting.block`` base pages. Locks,
SRCU sections, TLBs and page references are part of the state, because schedules differ in nothing else. The names of
``World``'s fields are also the names in which a step declares what it reads and writes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from guestmem.races.protocol import NEXT, Protocol

__all__ = (
    "FREE",
    "FREED_MAPPED",
    "HOST",
    "NOTHING",
    "USED_FREED",
    "Actor",
    "WorldLeaf",
    "Lock",
    "Setting",
    "WorldSlot",
    "World",
    "actor_bit",
)

HOST = 1000  # host page of hva page h is HOST + h; a file's pages are below
NOTHING = -1
FREED_MAPPED = "freed while mapped"
USED_FREED = "used after free"


@dataclass(frozen=True, slots=True)
class Setting:
    """What does not change during a run."""

    protocol: Protocol = NEXT
    order: int = 1  # order of the one huge leaf size
    npages: int = 4  # pages of the file
    huge_folios: bool = True  # the file takes huge folios (profile next)
    private_mem: bool = True  # a software-protected VM; else a default VM, whose slot deletions drop every root
    in_place: bool = False  # attributes belong to the file, which every access goes to (Linux 7.4); no huge folios

    @property
    def block(self) -> int:
        """Base pages per huge page."""
        return 1 << self.order

    def block_of(self, page: int) -> int:
        """First page of the naturally aligned block."""
        return page & -self.block


class WorldLeaf(NamedTuple):
    """A stage-2 or TLB entry: frames [start, start + 2**order) show pages from page on."""

    start: int
    order: int
    page: int
    private: bool

    @property
    def end(self) -> int:
        """One past the last frame."""
        return self.start + (1 << self.order)


class WorldSlot(NamedTuple):
    """A memslot in memory. state: "valid", "invalid" (being deleted or moved), "gone" (unreachable, not yet freed)."""

    id: int
    base: int
    npages: int
    pgoff: int  # NOTHING without a file
    hva: int  # in pages
    file: bool  # slot->gmem.file is set
    state: str

    @property
    def end(self) -> int:
        """One past the last frame."""
        return self.base + self.npages


class Lock(NamedTuple):
    """A read/write lock: the actor that writes, or NOTHING, and the bits of those that read."""

    writer: int = NOTHING
    readers: int = 0

    @property
    def idle(self) -> bool:
        """Whether a writer may enter."""
        return self.writer == NOTHING and not self.readers


FREE = Lock()


class Actor(NamedTuple):
    """Where an actor is, and what its steps have found so far. outcome is "" until it has ended."""

    at: str
    outcome: str = ""
    private: bool = False
    slot: int = NOTHING  # id of the slot the fault found
    slot_invalid: bool = False
    seq: int = 0
    page: int = NOTHING  # of the file or the host; a file's page is pinned
    folio_order: int = 0
    order: int = 0
    root: int = 0  # generation of the page-table root
    found: bool = False  # an invalidation found a slot or binding, so it was begun
    folio: int = NOTHING  # page of the folio that is locked or marked


class World(NamedTuple):
    """Everything that is shared, and every actor's own state."""

    actors: tuple[Actor, ...]
    # the MMU
    seq: int  # mmu_invalidate_seq
    invalidation: tuple[int, int, int]  # in progress, and the hull of their ranges
    leaves: tuple[WorldLeaf, ...]
    tlbs: tuple[WorldLeaf | None, ...]  # per actor
    root_generation: int
    # locks
    mmu_lock: Lock
    slots_lock: int
    filemap: Lock  # the file's invalidate lock
    folio_locks: int  # bits of pages
    srcu: tuple[int, int]  # bits of readers, and of readers that synchronize_srcu waits for
    # memory
    attributes: int  # bits of private frames, or with in-place conversion of private indexes of the file
    mixed: int  # bits of blocks whose attributes differ (hugepage_test_mixed)
    slots: tuple[WorldSlot, ...]
    bindings: tuple[int, ...]  # slot id per file index
    cache: tuple[tuple[int, int] | None, ...]  # page and folio order per file index
    pins: tuple[int, ...]  # pages that faults hold
    poisoned: int  # bits of pages
    file: tuple[bool, int, bool]  # the descriptor is open, references, the inode is there
    signals: int  # bits of actors with a signal pending
    harm: frozenset[str]  # FREED_MAPPED, USED_FREED: seen when it happens, kept to the end
    in_place: bool = False  # as the setting has it

    def slot_at(self, frame: int) -> WorldSlot | None:
        """The slot that a look-up finds, an invalid one included."""
        for slot in self.slots:
            if slot.base <= frame < slot.end and slot.state != "gone":
                return slot
        return None

    def slot_of(self, id: int) -> WorldSlot | None:
        """The slot of this id that is in memory."""
        for slot in self.slots:
            if slot.id == id:
                return slot
        return None

    def leaf_at(self, frame: int) -> WorldLeaf | None:
        """The leaf that maps the frame."""
        for leaf in self.leaves:
            if leaf.start <= frame < leaf.end:
                return leaf
        return None

    def is_private(self, frame: int) -> bool:
        """The frame's attribute, or that of the file's page: shared without a valid slot and an open file."""
        if not self.in_place:
            return bool(self.attributes >> frame & 1)
        slot = self.slot_at(frame)
        if slot is None or slot.state != "valid" or not slot.file or not self.file[1]:
            return False
        return bool(self.attributes >> (frame - slot.base + slot.pgoff) & 1)

    def invalidating(self, frame: int) -> bool:
        """Whether an invalidation in progress may include the frame: a hull, hence more than was asked for."""
        count, start, end = self.invalidation
        return bool(count) and start <= frame < end


def actor_bit(me: int) -> int:
    """The bit of an actor in a set of actors."""
    return 1 << me
