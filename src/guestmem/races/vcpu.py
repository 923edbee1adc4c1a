"""vCPUs: a guest access that faults until it is answered, and KVM_PRE_FAULT_MEMORY.

The steps of a fault are those of ``guestmem.model.fault.STEPS`` by name and in that order; around them are what the
model, where nothing runs at the same time, need not have: the access through TLB and tables, the SRCU read-side section
from exit to entry, and the retry. mmu_lock is held for reading from ``recheck`` to ``map-leaf``; the page is pinned
from ``get-page`` until then.
"""

from __future__ import annotations

from dataclasses import dataclass

from guestmem.races.memory import allocate, decide_order, install, pin, unpin
from guestmem.races.step import Program, Run, Step, end, go, program, step
from guestmem.races.world import HOST, NOTHING, USED_FREED, Actor, Leaf, Setting, World, actor_bit

__all__ = ("PreFault", "Signal", "Touch")

RETRY = "retry"


@dataclass(frozen=True, slots=True)
class Touch:
    """A guest access to a frame under KVM_RUN, repeated until it is answered or exits to user space."""

    frame: int

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"vCPU touches gfn {self.frame}"

    def program(self, setting: Setting) -> Program:
        """access, then the fault, then access again."""
        return program(
            step("access", self._access, "read-attribute end", "leaves root_generation", "+tlbs +srcu"),
            step("read-attribute", self._read_attribute(setting), "look-up-slot", "attributes"),
            *_fault_steps(self.frame, setting, "resume", mmio="mmio", fault="memory-fault"),
            step("resume", _resume, "access", "", "+srcu"),
            step(RETRY, _resume, "access", "", "+srcu"),
        )

    def _access(self, world: World, me: int) -> World | None:
        leaf = world.tlbs[me]
        if leaf is None or not leaf.start <= self.frame < leaf.end:
            leaf = world.leaf_at(self.frame)
        if leaf is None:
            readers, awaited = world.srcu
            world = world._replace(srcu=(readers | actor_bit(me), awaited))
            return go(world, me, "read-attribute", root=world.root_generation)
        tlbs = list(world.tlbs)
        tlbs[me] = leaf
        return end(world._replace(tlbs=tuple(tlbs)), me, "done")

    def _read_attribute(self, setting: Setting) -> Run:
        def run(world: World, me: int) -> World:
            return go(world, me, "look-up-slot", private=setting.private_mem and world.is_private(self.frame))

        return run


@dataclass(frozen=True, slots=True)
class PreFault:
    """KVM_PRE_FAULT_MEMORY of one page: one SRCU section for the whole call, the attribute read once."""

    frame: int

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"pre-fault of gfn {self.frame}"

    def program(self, setting: Setting) -> Program:
        """enter, then the fault until it is mapped or fails."""
        return program(
            step("enter", self._enter, "read-attribute", "", "+srcu"),
            step("read-attribute", self._read_attribute(setting), "look-up-slot", "attributes"),
            *_fault_steps(self.frame, setting, "leave", mmio="ENOENT", fault="EFAULT"),
            step(RETRY, self._retry(setting), "look-up-slot end", "signals root_generation", "+srcu"),
            step("leave", _leave, "end", "", "+srcu"),
        )

    def _enter(self, world: World, me: int) -> World:
        readers, awaited = world.srcu
        # The root was loaded before, at the latest when the vCPU last ran: generation 0.
        return go(world._replace(srcu=(readers | actor_bit(me), awaited)), me, "read-attribute")

    def _read_attribute(self, setting: Setting) -> Run:
        def run(world: World, me: int) -> World:
            root = world.actors[me].root
            private = setting.private_mem and world.is_private(self.frame)
            return go(world, me, "look-up-slot", private=private, root=root)

        return run

    def _retry(self, setting: Setting) -> Run:
        protocol = setting.protocol

        def run(world: World, me: int) -> World:
            if world.signals & actor_bit(me):
                return _exit(world, me, "EINTR")
            if world.actors[me].slot_invalid and protocol.pre_fault_gives_up:
                return _exit(world, me, "EAGAIN")
            root = world.root_generation if protocol.pre_fault_renews_root else world.actors[me].root
            forgotten = go(world, me, "look-up-slot", slot=NOTHING, slot_invalid=False, seq=0, root=root)
            return go(forgotten, me, "look-up-slot", page=NOTHING, folio_order=0, order=0)

        return run


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal to the thread of another actor."""

    to: int

    @property
    def label(self) -> str:
        """The head of its column."""
        return "signal"

    def program(self, setting: Setting) -> Program:
        """One step."""

        def run(world: World, me: int) -> World:
            return end(world._replace(signals=world.signals | actor_bit(self.to)), me, "sent")

        return program(step("send-signal", run, "end", "", "signals"))


def _fault_steps(frame: int, setting: Setting, mapped: str, *, mmio: str, fault: str) -> list[Step]:
    """From the look-up of the slot to the leaf. mapped: the step after that; mmio, fault: how it ends without one."""
    protocol = setting.protocol

    def look_up_slot(world: World, me: int) -> World:
        slot = world.slot_at(frame)
        if slot is None:
            return go(world, me, order_of_checks[0])
        return go(world, me, order_of_checks[0], slot=slot.id, slot_invalid=slot.state == "invalid")

    def sample_invalidations(world: World, me: int) -> World:
        return go(world, me, after["sample-invalidations"], seq=world.seq)

    def compare_attribute(world: World, me: int) -> World:
        if setting.private_mem and world.actors[me].private != world.is_private(frame):
            return _exit(world, me, fault)
        return go(world, me, after["compare-attribute"])

    def get_file(world: World, me: int) -> World:
        actor = world.actors[me]
        if actor.slot == NOTHING:
            return _exit(world, me, fault if actor.private else mmio)
        if actor.slot_invalid:
            return go(world, me, RETRY)
        if not actor.private:
            return go(world, me, "get-page")
        slot = world.slot_of(actor.slot)
        if slot is None:
            return _used_freed(world, me)
        opened, references, inode = world.file
        if not slot.file or not references:
            return _exit(world, me, fault)
        return go(world._replace(file=(opened, references + 1, inode)), me, "get-page")

    def get_page(world: World, me: int) -> World | None:
        actor, slot = world.actors[me], world.slot_of(world.actors[me].slot)
        if slot is None:
            return _used_freed(world, me)
        if not actor.private:
            return go(world, me, "recheck", page=HOST + slot.hva + frame - slot.base)
        index = frame - slot.base + slot.pgoff
        world = allocate(setting, world, index)
        entry = world.cache[index]
        assert entry is not None, "bug in guestmem: an allocation left a hole"
        if world.folio_locks >> entry[0] & 1:
            return None
        opened, references, inode = world.file
        world = world._replace(file=(opened, references - 1, inode))
        if world.poisoned >> entry[0] & 1:
            return _exit(world, me, fault)
        return go(pin(world, entry[0]), me, "recheck", page=entry[0], folio_order=entry[1])

    def recheck(world: World, me: int) -> World | None:
        if world.mmu_lock.writer != NOTHING:
            return None
        actor = world.actors[me]
        if protocol.recheck and _is_stale(world, actor.seq, actor.root, frame):
            return go(unpin(world, actor.page), me, RETRY)
        lock = world.mmu_lock
        return go(world._replace(mmu_lock=lock._replace(readers=lock.readers | actor_bit(me))), me, "decide-level")

    def decide_level(world: World, me: int) -> World:
        actor, slot = world.actors[me], world.slot_of(world.actors[me].slot)
        if slot is None:
            return go(world._replace(harm=world.harm | {USED_FREED}), me, "map-leaf")
        return go(world, me, "map-leaf", order=decide_order(setting, world, actor, slot, frame))

    def map_leaf(world: World, me: int) -> World:
        actor = world.actors[me]
        start = frame & -(1 << actor.order)
        leaf = Leaf(start, actor.order, actor.page - (frame - start), actor.private)
        lock = world.mmu_lock
        world = world._replace(mmu_lock=lock._replace(readers=lock.readers & ~actor_bit(me)))
        world = unpin(install(world, leaf), actor.page)
        return go(world, me, mapped, page=NOTHING, folio_order=0, order=0, seq=0, slot=NOTHING)

    # The kernel's order, and that of the mutation which compares before it samples.
    order_of_checks = ("sample-invalidations", "compare-attribute")
    if not protocol.sample_first:
        order_of_checks = ("compare-attribute", "sample-invalidations")
    after = dict(zip(order_of_checks, (order_of_checks[1], "get-file"), strict=True))
    checks = {
        "sample-invalidations": step(
            "sample-invalidations", sample_invalidations, after["sample-invalidations"], "seq"
        ),
        "compare-attribute": step(
            "compare-attribute", compare_attribute, f"{after['compare-attribute']} end", "attributes", "+srcu"
        ),
    }
    return [
        step("look-up-slot", look_up_slot, order_of_checks[0], "slots"),
        *(checks[name] for name in order_of_checks),
        step("get-file", get_file, f"get-page {RETRY} end", "slots", "file +srcu +harm"),
        step("get-page", get_page, "recheck end", "slots poisoned folio_locks", "cache pins file +srcu +harm"),
        step("recheck", recheck, f"decide-level {RETRY}", "seq invalidation root_generation", "+mmu_lock +pins"),
        step("decide-level", decide_level, "map-leaf", "slots mixed poisoned", "+harm"),
        step("map-leaf", map_leaf, mapped, "", "leaves +pins +mmu_lock"),
    ]


def _is_stale(world: World, seq: int, root: int, frame: int) -> bool:
    return world.root_generation != root or world.seq != seq or world.invalidating(frame)


def _resume(world: World, me: int) -> World:
    """Back into the guest: the read-side section ends, and everything the fault knew is forgotten."""
    actors = list(world.actors)
    actors[me] = Actor("access")
    return _leave_srcu(world, me)._replace(actors=tuple(actors))


def _used_freed(world: World, me: int) -> World:
    """The fault goes to a slot that was freed. What it would find there nobody knows; let it end, and give all back."""
    opened, references, inode = world.file
    held = int(world.actors[me].private and world.actors[me].at == "get-page")
    world = world._replace(file=(opened, references - held, inode), harm=world.harm | {USED_FREED})
    return _exit(world, me, "used a freed slot")


def _leave(world: World, me: int) -> World:
    return _exit(world, me, "done")


def _exit(world: World, me: int, outcome: str) -> World:
    return end(_leave_srcu(world, me), me, outcome)


def _leave_srcu(world: World, me: int) -> World:
    readers, awaited = world.srcu
    return world._replace(srcu=(readers & ~actor_bit(me), awaited & ~actor_bit(me)))
