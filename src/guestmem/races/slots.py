"""Deleting and moving a memslot as steps (kvm_set_memslot).

First the slot is made invalid, so that faults which find it retry; then every fault that may have seen the old one must
be over (synchronize_srcu); only then do its mappings go, without an invalidation being counted. Then the slot goes or
moves, the readers are awaited again, and a deleted slot is unbound and freed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guestmem.races.memory import flush, recompute_mixed, take_mmu_lock, unlock_mmu, zap
from guestmem.races.step import AtomicStep, Program, Run, end, go, program, step
from guestmem.races.world import NOTHING, Setting, World, WorldSlot

__all__ = ("DeleteSlot", "MoveSlot")


@dataclass(frozen=True, slots=True)
class DeleteSlot:
    """KVM_SET_USER_MEMORY_REGION2 with size 0."""

    id: int = 0

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"delete slot {self.id}"

    def program(self, setting: Setting) -> Program:
        """Invalidate, remove, unbind and free."""
        return program(
            *_invalidate_slot(self.id, setting, "remove-slot"),
            step("remove-slot", self._remove, "synchronize-again", "", "slots"),
            *_synchronize("synchronize-again", "wait-again", "unbind", setting),
            step("unbind", self._unbind(setting), "unbind-locked free-slot", "", "file bindings slots"),
            step("unbind-locked", self._unbind_locked, "free-slot", "filemap", "file bindings slots"),
            step("free-slot", self._free, "end", "", "slots slots_lock"),
        )

    def _remove(self, world: World, me: int) -> World:
        return go(_with_slot(world, self.id, lambda slot: slot._replace(state="gone")), me, "synchronize-again")

    def _unbind(self, setting: Setting) -> Run:
        protocol = setting.protocol

        def run(world: World, me: int) -> World:
            slot = world.slot_of(self.id)
            assert slot is not None, "bug in guestmem: the slot went without its lock"
            if not slot.file:
                return go(world, me, "free-slot")
            opened, references, inode = world.file
            if references:
                return go(world._replace(file=(opened, references + 1, inode)), me, "unbind-locked", found=True)
            if not protocol.unbind_dying:
                return go(world, me, "free-slot")
            if protocol.unbind_dying_locked:
                return go(world, me, "unbind-locked", found=False)
            return go(_unbound(world, self.id), me, "free-slot")

        return run

    def _unbind_locked(self, world: World, me: int) -> World | None:
        if not world.filemap.idle:
            return None
        opened, references, inode = world.file
        taken = int(world.actors[me].found)
        return go(_unbound(world._replace(file=(opened, references - taken, inode)), self.id), me, "free-slot")

    def _free(self, world: World, me: int) -> World:
        slots = tuple(slot for slot in world.slots if slot.id != self.id)
        return end(world._replace(slots=slots, slots_lock=NOTHING), me, "done")


@dataclass(frozen=True, slots=True)
class MoveSlot:
    """A plain slot gets another base; slots with a file cannot move."""

    base: int
    id: int = 0

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"move slot {self.id} to gfn {self.base}"

    def program(self, setting: Setting) -> Program:
        """Invalidate, move, wait."""
        return program(
            *_invalidate_slot(self.id, setting, "move-slot"),
            step("move-slot", self._move(setting), "synchronize-again", "attributes", "slots mixed"),
            *_synchronize("synchronize-again", "wait-again", "unlock-slots", setting),
            step("unlock-slots", _unlock_slots, "end", "", "slots_lock"),
        )

    def _move(self, setting: Setting) -> Run:
        def run(world: World, me: int) -> World:
            world = _with_slot(world, self.id, lambda slot: slot._replace(state="valid", base=self.base))
            slot = world.slot_of(self.id)
            assert slot is not None, "bug in guestmem: the slot went without its lock"
            world = recompute_mixed(setting, world, [slot], slot.base, slot.end)
            return go(world, me, "synchronize-again")

        return run


def _invalidate_slot(id: int, setting: Setting, then: str) -> list[AtomicStep]:
    """kvm_invalidate_memslot: from the lock to the flush. A default VM drops every mapping and outdates every root."""

    def lock_slots(world: World, me: int) -> World | None:
        if world.slots_lock != NOTHING:
            return None
        if world.slot_of(id) is None:
            return end(world, me, "EINVAL")
        return go(world._replace(slots_lock=me), me, "invalidate-slot")

    def invalidate_slot(world: World, me: int) -> World:
        return go(_with_slot(world, id, lambda slot: slot._replace(state="invalid")), me, "synchronize")

    def zap_slot(world: World, me: int) -> World | None:
        locked = take_mmu_lock(world, me)
        slot = world.slot_of(id)
        if locked is None or slot is None:
            return None
        if setting.private_mem:
            return go(zap(locked, [(slot.base, slot.end)]), me, "flush-slot")
        dropped = locked._replace(leaves=(), root_generation=world.root_generation + 1)
        return go(flush(dropped), me, "flush-slot")

    def flush_slot(world: World, me: int) -> World:
        return go(unlock_mmu(flush(world)), me, then)

    return [
        step("lock-slots", lock_slots, "invalidate-slot end", "slots", "slots_lock"),
        step("invalidate-slot", invalidate_slot, "synchronize", "", "slots"),
        *_synchronize("synchronize", "wait", "zap-slot", setting),
        step("zap-slot", zap_slot, "flush-slot", "slots", "mmu_lock leaves root_generation tlbs"),
        step("flush-slot", flush_slot, then, "", "tlbs mmu_lock"),
    ]


def _synchronize(name: str, wait: str, then: str, setting: Setting) -> list[AtomicStep]:
    """synchronize_srcu: note who is inside a read-side section, then wait until all those have left it."""
    if not setting.protocol.wait_for_readers:
        return [step(name, lambda world, me: go(world, me, then), then)]

    def note_readers(world: World, me: int) -> World:
        readers, _ = world.srcu
        return go(world._replace(srcu=(readers, readers)), me, wait)

    def wait_for_them(world: World, me: int) -> World | None:
        return None if world.srcu[1] else go(world, me, then)

    return [step(name, note_readers, wait, "", "srcu"), step(wait, wait_for_them, then, "srcu")]


def _with_slot(world: World, id: int, change: Callable[[WorldSlot], WorldSlot]) -> World:
    return world._replace(slots=tuple(change(slot) if slot.id == id else slot for slot in world.slots))


def _unbound(world: World, id: int) -> World:
    bindings = tuple(NOTHING if owner == id else owner for owner in world.bindings)
    return _with_slot(world._replace(bindings=bindings), id, lambda slot: slot._replace(file=False))


def _unlock_slots(world: World, me: int) -> World:
    return end(world._replace(slots_lock=NOTHING), me, "done")
