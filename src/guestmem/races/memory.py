"""What steps do to mappings, pages and invalidations: plain functions from a world to a world.

Mirrors kvm_mmu_invalidate_begin/end, the leaf zapping of the TDP MMU, filemap_grab_folio, truncate_inode_pages_range
and kvm_mmu_hugepage_adjust, cut down to one huge leaf size.
"""

from __future__ import annotations

from collections.abc import Iterable

from guestmem.races.world import FREE, FREED_MAPPED, HOST, NOTHING, Actor, Setting, World, WorldLeaf, WorldSlot

__all__ = (
    "allocate",
    "begin",
    "bound_frames",
    "decide_order",
    "finish",
    "flush",
    "install",
    "pin",
    "recompute_mixed",
    "take_mmu_lock",
    "truncate",
    "unpin",
    "zap",
)

Range = tuple[int, int]


def take_mmu_lock(world: World, me: int) -> World | None:
    """mmu_lock for writing, or None while somebody has it."""
    return world._replace(mmu_lock=world.mmu_lock._replace(writer=me)) if world.mmu_lock.idle else None


def begin(world: World, ranges: Iterable[Range]) -> World:
    """Count an invalidation in and widen the hull by its ranges of frames (kvm_mmu_invalidate_begin, _range_add)."""
    count, low, high = world.invalidation
    for start, stop in ranges:
        low, high = (start, stop) if not count and low == high else (min(low, start), max(high, stop))
    return world._replace(invalidation=(count + 1, low, high))


def finish(world: World) -> World:
    """Count an invalidation out (kvm_mmu_invalidate_end); the next one to begin alone starts a new hull."""
    count, low, high = world.invalidation
    return world._replace(seq=world.seq + 1, invalidation=(count - 1, low, high) if count > 1 else (0, 0, 0))


def zap(world: World, ranges: Iterable[Range]) -> World:
    """Remove every leaf with a frame in the ranges; a huge leaf goes as a whole. TLBs still know it."""
    leaves = world.leaves
    for start, stop in ranges:
        leaves = tuple(leaf for leaf in leaves if leaf.end <= start or stop <= leaf.start)
    return world._replace(leaves=leaves)


def flush(world: World) -> World:
    """Empty every TLB (kvm_flush_remote_tlbs)."""
    return world._replace(tlbs=(None,) * len(world.tlbs))


def install(world: World, leaf: WorldLeaf) -> World:
    """Map a leaf; others under it are replaced."""
    kept = (old for old in world.leaves if old.end <= leaf.start or leaf.end <= old.start)
    return world._replace(leaves=tuple(sorted((*kept, leaf))))


def bound_frames(world: World, start: int, stop: int) -> list[Range]:
    """The guest frames that bindings of file indexes [start, stop) show."""
    found: list[Range] = []
    for slot in world.slots:
        bound = [index for index in range(start, min(stop, len(world.bindings))) if world.bindings[index] == slot.id]
        if bound:
            to_frame = slot.base - slot.pgoff
            found.append((bound[0] + to_frame, bound[-1] + 1 + to_frame))
    return found


def allocate(setting: Setting, world: World, index: int) -> World:
    """Put a folio at a hole of the file: a huge one if its whole block is empty, else a page.

    Page numbers say which index a page is for and how often that index was filled, so that the order in which faults
    allocate different pages makes no two states different.
    """
    if world.cache[index] is not None:
        return world
    order, first = 0, index
    block = setting.block_of(index)
    in_file = block + setting.block <= setting.npages
    if setting.huge_folios and not setting.in_place and in_file and not any(world.cache[block : block + setting.block]):
        order, first = setting.order, block
    page = first
    while any(_in_use(world, page + part) for part in range(1 << order)):
        page += setting.npages
    cache = list(world.cache)
    for part in range(1 << order):
        cache[first + part] = (page + part, order)
    return world._replace(cache=tuple(cache))


def _in_use(world: World, page: int) -> bool:
    cached = any(entry is not None and entry[0] == page for entry in world.cache)
    return cached or page in world.pins or bool(world.poisoned >> page & 1)


def truncate(setting: Setting, world: World, start: int, stop: int) -> World:
    """Free file indexes [start, stop); a folio partly inside is split and the rest of it stays (backing thp)."""
    cache = list(world.cache)
    harm = world.harm
    for index in range(start, stop):
        entry = cache[index]
        if entry is None:
            continue
        if _shown(world, entry[0]):
            harm |= {FREED_MAPPED}
        if entry[1]:
            block = setting.block_of(index)
            for other in range(block, block + setting.block):
                part = cache[other]
                if part is not None:
                    cache[other] = (part[0], 0)
        cache[index] = None
    return world._replace(cache=tuple(cache), harm=harm)


def _shown(world: World, page: int) -> bool:
    known = (*world.leaves, *(leaf for leaf in world.tlbs if leaf is not None))
    return any(leaf.page <= page < leaf.page + (1 << leaf.order) for leaf in known)


def pin(world: World, page: int) -> World:
    """Take a reference on a file's page; the host's pages need none here."""
    return world if page >= HOST else world._replace(pins=tuple(sorted((*world.pins, page))))


def unpin(world: World, page: int) -> World:
    """Drop a reference."""
    if page >= HOST or page == NOTHING:
        return world
    pins = list(world.pins)
    pins.remove(page)
    return world._replace(pins=tuple(pins))


def recompute_mixed(setting: Setting, world: World, slots: Iterable[WorldSlot], start: int, stop: int) -> World:
    """Set or clear the mixed mark of every block of frames [start, stop) that lies wholly in a slot."""
    mixed, size = world.mixed, setting.block
    whole = (1 << size) - 1
    for slot in slots:
        for block in range(setting.block_of(start), stop, size):
            if slot.base <= block and block + size <= slot.end:
                bits = world.attributes >> block & whole
                mark = 1 << block // size
                mixed = mixed & ~mark if bits in (0, whole) else mixed | mark
    return world._replace(mixed=mixed)


def decide_order(setting: Setting, world: World, fault: Actor, slot: WorldSlot, frame: int) -> int:
    """The order of the leaf: huge unless one of the limits of ``model.levels`` forbids it.

    tests/test_races_levels.py compares it with the model on random worlds.
    """
    size = setting.block
    block = setting.block_of(frame)
    if block < slot.base or block + size > slot.end or world.mixed >> block // size & 1:
        return 0
    if (slot.base - slot.hva) % size:
        return 0
    if not fault.private and not setting.in_place:
        return setting.order
    if fault.folio_order < setting.order:
        return 0
    delta = slot.base - slot.pgoff
    first = setting.block_of(frame - delta)
    if setting.protocol.contained and (delta % size or first < slot.pgoff or first + size > slot.pgoff + slot.npages):
        return 0
    page = fault.page - (frame - delta - first)
    return 0 if any(world.poisoned >> page + part & 1 for part in range(size)) else setting.order


def unlock_mmu(world: World) -> World:
    """Give mmu_lock back after writing."""
    return world._replace(mmu_lock=FREE)
