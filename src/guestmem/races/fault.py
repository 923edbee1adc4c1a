"""A fault, from the look-up of the slot to the leaf: kvm_tdp_mmu_page_fault as steps.

They are those of ``guestmem.model.fault.STEPS`` by name and in that order, with the check for invalidations that the
model, where nothing runs at the same time, need not have. The page is pinned from ``get-page`` on, mmu_lock is held for
reading from ``recheck`` on, both until ``map-leaf``. Who faults says what comes before and after, and how a fault
without a leaf ends.
"""

from __future__ import annotations

from dataclasses import dataclass

from guestmem.races.memory import allocate, decide_order, install, pin, unpin
from guestmem.races.step import AtomicStep, Run, end, go, step
from guestmem.races.world import HOST, NOTHING, USED_FREED, Actor, Setting, World, WorldLeaf, actor_bit

__all__ = ("RETRY", "FaultSteps", "attribute_fields", "leave_srcu", "leave_with")

RETRY = "retry"  # the step that a fault goes on at when something changed under it


@dataclass(frozen=True, slots=True)
class FaultSteps:
    """A fault on a frame. mapped: the step after the leaf; mmio, error: the outcomes without one."""

    frame: int
    setting: Setting
    mapped: str
    mmio: str
    error: str

    def steps(self) -> list[AtomicStep]:
        """The kernel's order, or that of the mutation which compares the attribute before it samples the count."""
        first, second = "sample-invalidations", "compare-attribute"
        if not self.setting.protocol.sample_first:
            first, second = second, first
        after = {first: second, second: "get-file"}
        sample, compare = after["sample-invalidations"], after["compare-attribute"]
        checks = {
            "sample-invalidations": step("sample-invalidations", self._sample(sample), sample, "seq"),
            "compare-attribute": step(
                "compare-attribute", self._compare(compare), f"{compare} end", attribute_fields(self.setting), "+srcu"
            ),
        }
        return [
            step("look-up-slot", self._look_up_slot(first), first, "slots"),
            checks[first],
            checks[second],
            step("get-file", self._get_file, f"get-page {RETRY} end", "slots", "file +srcu +harm"),
            step(
                "get-page", self._get_page, "recheck end", "slots poisoned folio_locks", "cache pins file +srcu +harm"
            ),
            step(
                "recheck", self._recheck, f"decide-level {RETRY}", "seq invalidation root_generation", "+mmu_lock +pins"
            ),
            step("decide-level", self._decide_level, "map-leaf", "slots mixed poisoned", "+harm"),
            step("map-leaf", self._map_leaf, self.mapped, "", "leaves +pins +mmu_lock"),
        ]

    def _look_up_slot(self, then: str) -> Run:
        def run(world: World, me: int) -> World:
            slot = world.slot_at(self.frame)
            if slot is None:
                return go(world, me, then)
            return go(world, me, then, slot=slot.id, slot_invalid=slot.state == "invalid")

        return run

    def _sample(self, then: str) -> Run:
        return lambda world, me: go(world, me, then, seq=world.seq)

    def _compare(self, then: str) -> Run:
        def run(world: World, me: int) -> World:
            if self.setting.private_mem and world.actors[me].private != world.is_private(self.frame):
                return leave_with(world, me, self.error)
            return go(world, me, then)

        return run

    def _get_file(self, world: World, me: int) -> World:
        fault = world.actors[me]
        if fault.slot == NOTHING:
            return leave_with(world, me, self.error if fault.private else self.mmio)
        if fault.slot_invalid:
            return go(world, me, RETRY)
        if not self._takes_file(fault):
            return go(world, me, "get-page")
        slot = world.slot_of(fault.slot)
        if slot is None:
            return _used_freed(world, me, held=0)
        opened, references, inode = world.file
        if not slot.file or not references:
            return leave_with(world, me, self.error)
        return go(world._replace(file=(opened, references + 1, inode)), me, "get-page")

    def _get_page(self, world: World, me: int) -> World | None:
        fault, slot = world.actors[me], world.slot_of(world.actors[me].slot)
        if slot is None:
            return _used_freed(world, me, held=int(self._takes_file(fault)))
        if not self._takes_file(fault):
            return go(world, me, "recheck", page=HOST + slot.hva + self.frame - slot.base)
        index = self.frame - slot.base + slot.pgoff
        world = allocate(self.setting, world, index)
        entry = world.cache[index]
        assert entry is not None, "bug in guestmem: an allocation left a hole"
        if world.folio_locks >> entry[0] & 1:
            return None
        opened, references, inode = world.file
        world = world._replace(file=(opened, references - 1, inode))
        if world.poisoned >> entry[0] & 1:
            return leave_with(world, me, self.error)
        return go(pin(world, entry[0]), me, "recheck", page=entry[0], folio_order=entry[1])

    def _takes_file(self, fault: Actor) -> bool:
        return fault.private or self.setting.in_place

    def _recheck(self, world: World, me: int) -> World | None:
        if world.mmu_lock.writer != NOTHING:
            return None
        fault, lock = world.actors[me], world.mmu_lock
        if self.setting.protocol.recheck and self._is_stale(world, fault.seq, fault.root):
            return go(unpin(world, fault.page), me, RETRY)
        return go(world._replace(mmu_lock=lock._replace(readers=lock.readers | actor_bit(me))), me, "decide-level")

    def _is_stale(self, world: World, seq: int, root: int) -> bool:
        return world.root_generation != root or world.seq != seq or world.invalidating(self.frame)

    def _decide_level(self, world: World, me: int) -> World:
        fault, slot = world.actors[me], world.slot_of(world.actors[me].slot)
        if slot is None:
            return go(world._replace(harm=world.harm | {USED_FREED}), me, "map-leaf")
        return go(world, me, "map-leaf", order=decide_order(self.setting, world, fault, slot, self.frame))

    def _map_leaf(self, world: World, me: int) -> World:
        fault, lock = world.actors[me], world.mmu_lock
        start = self.frame & -(1 << fault.order)
        leaf = WorldLeaf(start, fault.order, fault.page - (self.frame - start), fault.private)
        world = world._replace(mmu_lock=lock._replace(readers=lock.readers & ~actor_bit(me)))
        world = unpin(install(world, leaf), fault.page)
        return go(world, me, self.mapped, page=NOTHING, folio_order=0, order=0, seq=0, slot=NOTHING)


def attribute_fields(setting: Setting) -> str:
    """What a look at a frame's attribute looks at."""
    return "attributes slots file" if setting.in_place else "attributes"


def leave_with(world: World, me: int, outcome: str) -> World:
    """The actor leaves its read-side section and ends."""
    return end(leave_srcu(world, me), me, outcome)


def leave_srcu(world: World, me: int) -> World:
    """The actor's read-side section ends."""
    readers, awaited = world.srcu
    return world._replace(srcu=(readers & ~actor_bit(me), awaited & ~actor_bit(me)))


def _used_freed(world: World, me: int, held: int) -> World:
    """The fault goes to a slot that was freed. What it would find there nobody knows: let it end and give all back."""
    opened, references, inode = world.file
    world = world._replace(file=(opened, references - held, inode), harm=world.harm | {USED_FREED})
    return leave_with(world, me, "used a freed slot")
