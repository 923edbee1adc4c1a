"""KVM_SET_MEMORY_ATTRIBUTES as steps (kvm_vm_set_mem_attributes): one store per page, between begin and end."""

from __future__ import annotations

from dataclasses import dataclass

from guestmem.races.invalidation import begin_zap_flush
from guestmem.races.memory import finish, recompute_mixed
from guestmem.races.step import AtomicStep, Program, Run, end, go, program, step
from guestmem.races.world import NOTHING, Setting, World, WorldSlot

__all__ = ("Convert",)


@dataclass(frozen=True, slots=True)
class Convert:
    """Frames [start, stop) become private, or shared."""

    start: int
    stop: int
    private: bool

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"gfn [{self.start}, {self.stop}) to {'private' if self.private else 'shared'}"

    def program(self, setting: Setting) -> Program:
        """Lock, compare, begin, zap, flush, store page by page, end, unlock."""

        def to_zap(world: World) -> list[tuple[int, int]]:
            return [(max(self.start, slot.base), min(self.stop, slot.end)) for slot in self._slots(world)]

        def to_begin(world: World) -> list[tuple[int, int]]:
            ranges = to_zap(world)
            if setting.protocol.widen_attributes:
                ranges += [edge for slot in self._slots(world) for edge in self._edges(setting, world, slot)]
            return ranges

        stores = [self._store(frame) for frame in range(self.start, self.stop)]
        return program(
            step("lock-slots", _lock_slots, "compare", "", "slots_lock"),
            step("compare", self._compare, "invalidate-begin end", "attributes", "slots_lock"),
            *begin_zap_flush("slots mixed", to_begin, to_zap, stores[0].name),
            *stores,
            step(
                "invalidate-end",
                self._end(setting),
                "unlock-slots",
                "slots attributes mmu_lock",
                "seq invalidation mixed",
            ),
            step("unlock-slots", _unlock_slots, "end", "", "slots_lock"),
        )

    def _slots(self, world: World) -> list[WorldSlot]:
        return [
            slot for slot in world.slots if slot.state != "gone" and slot.base < self.stop and self.start < slot.end
        ]

    def _edges(self, setting: Setting, world: World, slot: WorldSlot) -> list[tuple[int, int]]:
        """The huge ranges of head and tail that the change covers in part, lie in the slot and are uniform so far."""
        size = setting.block
        found = []
        for block in sorted({setting.block_of(self.start), setting.block_of(self.stop - 1)}):
            partial = block < self.start or block + size > self.stop
            uniform = not world.mixed >> block // size & 1
            if partial and uniform and slot.base <= block and block + size <= slot.end:
                found.append((block, block + size))
        return found

    def _compare(self, world: World, me: int) -> World:
        if all(world.is_private(frame) == self.private for frame in range(self.start, self.stop)):
            return end(world._replace(slots_lock=NOTHING), me, "done")
        return go(world, me, "invalidate-begin")

    def _store(self, frame: int) -> AtomicStep:
        then = f"store-gfn-{frame + 1}" if frame + 1 < self.stop else "invalidate-end"
        bit = 1 << frame

        def run(world: World, me: int) -> World:
            attributes = world.attributes | bit if self.private else world.attributes & ~bit
            return go(world._replace(attributes=attributes), me, then)

        return step(f"store-gfn-{frame}", run, then, "", "attributes")

    def _end(self, setting: Setting) -> Run:
        def run(world: World, me: int) -> World | None:
            slots = self._slots(world)
            if not slots:
                return go(world, me, "unlock-slots")
            if not world.mmu_lock.idle:
                return None
            return go(recompute_mixed(setting, finish(world), slots, self.start, self.stop), me, "unlock-slots")

        return run


def _lock_slots(world: World, me: int) -> World | None:
    return go(world._replace(slots_lock=me), me, "compare") if world.slots_lock == NOTHING else None


def _unlock_slots(world: World, me: int) -> World:
    return end(world._replace(slots_lock=NOTHING), me, "done")
