"""What must hold when every actor has ended, or when none can go on.

The assertions look at the world only: a leaf must show what slot, binding, file and attribute say now, TLBs hold
nothing else, locks and counts are given back, and no page left the file while it was mapped.
"""

from __future__ import annotations

from dataclasses import dataclass

from guestmem.races.world import FREE, FREED_MAPPED, HOST, NOTHING, USED_FREED, World, WorldLeaf, WorldSlot

__all__ = ("HARMS", "Violation", "violations")

HARMS = {
    FREED_MAPPED: "a page left the file while stage 2 or a TLB mapped it",
    USED_FREED: "an actor used a slot that was freed",
}


@dataclass(frozen=True, slots=True, order=True)
class Violation:
    """What does not hold: its kind, one of a few words, and what was found."""

    kind: str
    text: str


def violations(world: World) -> tuple[Violation, ...]:
    """Everything that an end state breaks."""
    waiting = [number for number, actor in enumerate(world.actors) if actor.at]
    if waiting:
        steps = ", ".join(f"actor {number + 1} at {world.actors[number].at}" for number in waiting)
        return (Violation("deadlock", f"no actor can go on: {steps}"),)
    found = [violation for leaf in world.leaves for violation in _of_leaf(world, leaf, "stage 2")]
    for leaf in world.tlbs:
        if leaf is not None:
            found += _of_leaf(world, leaf, "a TLB")
    found += [Violation(harm, HARMS[harm]) for harm in world.harm]
    return tuple(sorted({*found, *_of_file(world), *_of_counts(world)}))


def _of_leaf(world: World, leaf: WorldLeaf, where: str) -> list[Violation]:
    return [v for frame in range(leaf.start, leaf.end) if (v := _of_frame(world, leaf, frame, where)) is not None]


def _of_frame(world: World, leaf: WorldLeaf, frame: int, where: str) -> Violation | None:
    page = leaf.page + frame - leaf.start
    slot = world.slot_at(frame)
    if slot is None:
        return Violation("outside a binding", f"{where} maps gfn {frame}, where there is no slot")
    if leaf.private != world.is_private(frame):
        kinds = ("shared", "private")
        text = f"{where} shows gfn {frame} as {kinds[leaf.private]}, its attribute is {kinds[not leaf.private]}"
        return Violation("private reachable as shared" if not leaf.private else "stale mapping", text)
    if not leaf.private and not world.in_place:
        right = HOST + slot.hva + frame - slot.base
        return None if page == right else Violation("stale mapping", f"{where} maps gfn {frame} to another host page")
    return _of_file_page(world, slot, frame, page, where)


def _of_file_page(world: World, slot: WorldSlot, frame: int, page: int, where: str) -> Violation | None:
    index = frame - slot.base + slot.pgoff
    bound = slot.pgoff != NOTHING and index < len(world.bindings) and world.bindings[index] == slot.id
    if not bound:
        return Violation("outside a binding", f"{where} maps gfn {frame}, which no file is bound to")
    entry = world.cache[index]
    if entry is None or entry[0] != page:
        return Violation("stale mapping", f"{where} maps gfn {frame} to a page that is not at file index {index}")
    if world.poisoned >> page & 1:
        return Violation("stale mapping", f"{where} maps gfn {frame} to a poisoned page")
    return None


def _of_file(world: World) -> list[Violation]:
    found = []
    if not world.file[2] and any(entry is not None for entry in world.cache):
        found.append(Violation("leak", "the file was released and still has a page"))
    if world.pins:
        found.append(Violation("leak", "a fault has ended and still holds a page"))
    if world.file[1] != int(world.file[0]):
        found.append(Violation("leak", "an actor has ended and still holds the file"))
    living = {slot.id for slot in world.slots}
    if any(owner != NOTHING and owner not in living for owner in world.bindings):
        found.append(Violation("dangling binding", "the file is bound to a slot that was freed"))
    return found


def _of_counts(world: World) -> list[Violation]:
    found = []
    if world.invalidation[0]:
        text = "an invalidation was begun and never ended: every later fault on its range retries for ever"
        found.append(Violation("retry without end", text))
    locked = world.mmu_lock != FREE or world.filemap != FREE or world.slots_lock != NOTHING
    if locked or world.folio_locks or world.srcu[0]:
        found.append(Violation("leak", "an actor has ended and still holds a lock"))
    return found
