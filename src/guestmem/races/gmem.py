"""Actors on the file: punch hole, memory failure, and the close that drops the last reference.

Mirrors kvm_gmem_punch_hole, kvm_gmem_error_folio under memory_failure, and kvm_gmem_release followed by the eviction of
the inode. The last reference may be one that a fault or a deletion took for a moment; whoever drops it, the release
is a step of the actor that closes, and waits for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from guestmem.races.invalidation import begin_zap_flush, end_invalidation, whole
from guestmem.races.memory import bound_frames, flush, truncate
from guestmem.races.step import Program, Run, end, go, program, step
from guestmem.races.world import FREE, NOTHING, USED_FREED, Setting, World, actor_bit

__all__ = ("CloseFile", "MemoryFailure", "PunchHole", "lock_file", "open_file", "unlock_and_close")


@dataclass(frozen=True, slots=True)
class PunchHole:
    """fallocate(PUNCH_HOLE) of file indexes [start, stop)."""

    start: int
    stop: int

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"punch hole [{self.start}, {self.stop})"

    def program(self, setting: Setting) -> Program:
        """Lock, begin, zap, flush, truncate, end, unlock."""
        late = not setting.protocol.flush_before_free
        after_truncate = "late-flush" if late else "invalidate-end"

        def to_begin(world: World) -> list[tuple[int, int]]:
            huge = any(entry is not None and entry[1] for entry in world.cache[self.start : self.stop])
            if setting.protocol.widen_punch and (huge or setting.protocol.widen_punch_holes):
                return bound_frames(world, *whole(setting, self.start, self.stop))
            return bound_frames(world, self.start, self.stop)

        def to_zap(world: World) -> list[tuple[int, int]]:
            return bound_frames(world, self.start, self.stop)

        def late_flush(world: World, me: int) -> World:
            return go(flush(world), me, "invalidate-end")

        return program(
            step("open-file", open_file, "lock-file end", "", "file"),
            step("lock-file", lock_file("invalidate-begin"), "invalidate-begin", "", "filemap"),
            *begin_zap_flush("bindings slots cache", to_begin, to_zap, "truncate", flush_later=late),
            step(
                "truncate",
                self._truncate(setting, after_truncate),
                after_truncate,
                "folio_locks leaves tlbs",
                "cache +harm",
            ),
            *([step("late-flush", late_flush, "invalidate-end", "", "tlbs")] if late else []),
            end_invalidation("unlock-file", "bindings slots", lambda w, me: bool(to_zap(w))),
            step("unlock-file", unlock_and_close("done"), "end", "", "filemap file"),
        )

    def _truncate(self, setting: Setting, then: str) -> Run:
        def run(world: World, me: int) -> World | None:
            for entry in world.cache[self.start : self.stop]:
                if entry is not None and world.folio_locks >> entry[0] & 1:
                    return None
            world = truncate(setting, world, self.start, self.stop)
            return go(world, me, then)

        return run


@dataclass(frozen=True, slots=True)
class MemoryFailure:
    """memory_failure() of the page at a file index. A huge folio is marked and invalidated whole, but not split."""

    index: int

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"memory failure at {self.index}"

    def program(self, setting: Setting) -> Program:
        """Mark, lock folio and file in the protocol's order, begin, zap, flush, end, unlock."""
        locks = [self._lock_folio, self._lock_file]
        names = ["lock-folio", "lock-file-shared"]
        if setting.protocol.poison_locks_file_first:
            locks.reverse()
            names.reverse()
        following = [names[1], "invalidate-begin"]
        fields = {"lock-folio": "folio_locks", "lock-file-shared": "filemap"}
        also = {"lock-folio": "cache filemap", "lock-file-shared": ""}

        def ranges(world: World) -> list[tuple[int, int]]:
            entry = world.cache[self.index]
            if entry is not None and entry[1]:
                return bound_frames(world, *whole(setting, self.index, self.index + 1))
            return bound_frames(world, self.index, self.index + 1)

        locking = [
            step(name, lock(then), f"{then} end", also[name], f"{fields[name]} filemap")
            for name, lock, then in zip(names, locks, following, strict=True)
        ]
        return program(
            step("mark", self._mark(names[0]), f"{names[0]} end", "cache", "poisoned"),
            *locking,
            *begin_zap_flush("bindings slots cache", ranges, ranges, "invalidate-end"),
            end_invalidation("unlock", "bindings slots cache", lambda w, me: bool(ranges(w))),
            step("unlock", _unlock_poison, "end", "", "filemap folio_locks"),
        )

    def _mark(self, then: str) -> Run:
        def run(world: World, me: int) -> World:
            entry = world.cache[self.index]
            if entry is None:
                return end(world, me, "hole")
            return go(world._replace(poisoned=world.poisoned | 1 << entry[0]), me, then, folio=entry[0])

        return run

    def _lock_folio(self, then: str) -> Run:
        def run(world: World, me: int) -> World | None:
            page = world.actors[me].folio
            if world.folio_locks >> page & 1:
                return None
            entry = world.cache[self.index]
            if entry is None or entry[0] != page:  # truncated meanwhile: nothing is left to do
                readers = world.filemap.readers & ~actor_bit(me)
                return end(world._replace(filemap=world.filemap._replace(readers=readers)), me, "gone")
            return go(world._replace(folio_locks=world.folio_locks | 1 << page), me, then)

        return run

    def _lock_file(self, then: str) -> Run:
        def run(world: World, me: int) -> World | None:
            if world.filemap.writer != NOTHING:
                return None
            readers = world.filemap.readers | actor_bit(me)
            return go(world._replace(filemap=world.filemap._replace(readers=readers)), me, then)

        return run


@dataclass(frozen=True, slots=True)
class CloseFile:
    """close(2) of the only descriptor, the release of the file once nobody else holds it, and the end of its pages."""

    @property
    def label(self) -> str:
        """The head of its column."""
        return "close file"

    def program(self, setting: Setting) -> Program:
        """Close, lock slots and file, forget the slots' file, begin, zap, flush, end, unlock, evict."""

        def ranges(world: World) -> list[tuple[int, int]]:
            return bound_frames(world, 0, setting.npages)

        return program(
            step("close", _close, "lock-slots end", "", "file"),
            step("lock-slots", _lock_slots_for_release, "lock-file", "file", "slots_lock"),
            step("lock-file", lock_file("forget-file"), "forget-file", "", "filemap"),
            step("forget-file", _forget_file, "invalidate-begin", "bindings", "slots +harm"),
            *begin_zap_flush("bindings slots", ranges, ranges, "invalidate-end"),
            end_invalidation("unlock-file", "bindings slots", lambda w, me: bool(ranges(w))),
            step("unlock-file", _unlock_release, "evict", "", "filemap slots_lock bindings"),
            step("evict", self._evict(setting), "end", "filemap folio_locks leaves tlbs", "cache file +harm"),
        )

    def _evict(self, setting: Setting) -> Run:
        def run(world: World, me: int) -> World | None:
            if world.folio_locks or not world.filemap.idle:
                return None
            world = truncate(setting, world, 0, setting.npages)
            return end(world._replace(file=(False, 0, False)), me, "done")

        return run


def open_file(world: World, me: int) -> World:
    """Take the reference that a system call on the descriptor holds; EBADF once it is closed."""
    opened, references, inode = world.file
    if not opened:
        return end(world, me, "EBADF")
    return go(world._replace(file=(opened, references + 1, inode)), me, "lock-file")


def lock_file(then: str) -> Run:
    """The file's invalidate lock, for writing."""

    def run(world: World, me: int) -> World | None:
        return go(world._replace(filemap=FREE._replace(writer=me)), me, then) if world.filemap.idle else None

    return run


def unlock_and_close(outcome: str) -> Callable[[World, int], World]:
    """The system call is over: lock and reference are given back."""

    def run(world: World, me: int) -> World:
        opened, references, inode = world.file
        return end(world._replace(filemap=FREE, file=(opened, references - 1, inode)), me, outcome)

    return run


def _unlock_poison(world: World, me: int) -> World:
    readers = world.filemap.readers & ~actor_bit(me)
    locks = world.folio_locks & ~(1 << world.actors[me].folio)
    return end(world._replace(filemap=world.filemap._replace(readers=readers), folio_locks=locks), me, "done")


def _close(world: World, me: int) -> World:
    opened, references, inode = world.file
    if not opened:
        return end(world, me, "EBADF")
    return go(world._replace(file=(False, references - 1, inode)), me, "lock-slots")


def _lock_slots_for_release(world: World, me: int) -> World | None:
    if world.file[1] or world.slots_lock != NOTHING:
        return None
    return go(world._replace(slots_lock=me), me, "lock-file")


def _forget_file(world: World, me: int) -> World:
    slots = tuple(slot._replace(file=False) if slot.id in world.bindings else slot for slot in world.slots)
    dangling = set(world.bindings) - {NOTHING} - {slot.id for slot in world.slots}
    harm = world.harm | {USED_FREED} if dangling else world.harm
    return go(world._replace(slots=slots, harm=harm), me, "invalidate-begin")


def _unlock_release(world: World, me: int) -> World:
    unbound = (NOTHING,) * len(world.bindings)
    return go(world._replace(filemap=FREE, slots_lock=NOTHING, bindings=unbound), me, "evict")
