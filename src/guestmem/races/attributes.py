"""Conversion as steps: KVM_SET_MEMORY_ATTRIBUTES of frames, and KVM_SET_MEMORY_ATTRIBUTES2 of a file's pages.

The first (kvm_vm_set_mem_attributes) makes one store per page, between begin and end of an invalidation. The second, as
queued for 7.4, holds the file's invalidate lock and makes one store; to private it is refused (EAGAIN) while anybody
holds a page of the range, a guest's fault too.
"""

from __future__ import annotations

from dataclasses import dataclass

from guestmem.races.gmem import lock_file, open_file, unlock_and_close
from guestmem.races.invalidation import begin_zap_flush, end_invalidation
from guestmem.races.memory import bound_frames, finish, recompute_mixed
from guestmem.races.step import AtomicStep, Program, Run, end, go, program, step
from guestmem.races.world import NOTHING, Setting, World, WorldSlot

__all__ = ("Convert", "ConvertFile")


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


@dataclass(frozen=True, slots=True)
class ConvertFile:
    """File indexes [start, stop) become private, or shared."""

    start: int
    stop: int
    private: bool

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"file [{self.start}, {self.stop}) to {'private' if self.private else 'shared'}"

    def program(self, setting: Setting) -> Program:
        """Open, lock, compare, look for references, begin, zap, flush, store, end, unlock."""

        def ranges(world: World) -> list[tuple[int, int]]:
            return bound_frames(world, self.start, self.stop)

        after_compare = "find-references" if self.private else "invalidate-begin"
        found = step("find-references", self._references, "invalidate-begin end", "cache pins", "filemap file")
        return program(
            step("open-file", open_file, "lock-file end", "", "file"),
            step("lock-file", lock_file("compare"), "compare", "", "filemap"),
            step("compare", self._compare(after_compare), f"{after_compare} end", "attributes", "filemap file"),
            *([found] if self.private else []),
            *begin_zap_flush("bindings slots", ranges, ranges, "store"),
            step("store", self._store, "invalidate-end", "", "attributes"),
            end_invalidation("unlock-file", "bindings slots", lambda w, me: bool(ranges(w))),
            step("unlock-file", unlock_and_close("done"), "end", "", "filemap file"),
        )

    @property
    def _bits(self) -> int:
        return (1 << self.stop) - (1 << self.start)

    def _compare(self, then: str) -> Run:
        def run(world: World, me: int) -> World:
            wanted = self._bits if self.private else 0
            return (
                unlock_and_close("done")(world, me) if world.attributes & self._bits == wanted else go(world, me, then)
            )

        return run

    def _references(self, world: World, me: int) -> World | None:
        pages = [entry[0] for entry in world.cache[self.start : self.stop] if entry is not None]
        held = any(page in world.pins for page in pages)
        return unlock_and_close("EAGAIN")(world, me) if held else go(world, me, "invalidate-begin")

    def _store(self, world: World, me: int) -> World:
        attributes = world.attributes | self._bits if self.private else world.attributes & ~self._bits
        return go(world._replace(attributes=attributes), me, "invalidate-end")


def _lock_slots(world: World, me: int) -> World | None:
    return go(world._replace(slots_lock=me), me, "compare") if world.slots_lock == NOTHING else None


def _unlock_slots(world: World, me: int) -> World:
    return end(world._replace(slots_lock=NOTHING), me, "done")
