"""The middle of everything that takes mappings away: begin, zap, flush, and later end.

begin takes mmu_lock for writing; it is given back after the flush, or after the zap under the mutation that flushes
later. A begin that finds no binding or slot counts nothing and takes no lock, as in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable

from guestmem.races.memory import begin, finish, flush, take_mmu_lock, unlock_mmu, zap
from guestmem.races.step import AtomicStep, go, step
from guestmem.races.world import Setting, World

__all__ = ("Ranges", "begin_zap_flush", "end_invalidation")

Ranges = Callable[[World], list[tuple[int, int]]]  # of guest frames


def begin_zap_flush(
    reads: str, to_begin: Ranges, to_zap: Ranges, then: str, *, flush_later: bool = False
) -> list[AtomicStep]:
    """The first half of an invalidation. to_begin: the frames that faults may not map meanwhile; to_zap: those that go.

    reads: the fields the two functions look at. flush_later leaves the flush to the caller.
    """

    def run_begin(world: World, me: int) -> World | None:
        ranges = to_begin(world)
        if not ranges:
            return go(world, me, then, found=False)
        locked = take_mmu_lock(world, me)
        return None if locked is None else go(begin(locked, ranges), me, "zap", found=True)

    def run_zap(world: World, me: int) -> World:
        world = zap(world, to_zap(world))
        return go(unlock_mmu(world), me, then) if flush_later else go(world, me, "flush")

    def run_flush(world: World, me: int) -> World:
        return go(unlock_mmu(flush(world)), me, then)

    steps = [
        step("invalidate-begin", run_begin, f"zap {then}", reads, "mmu_lock invalidation"),
        step("zap", run_zap, then if flush_later else "flush", reads, "leaves mmu_lock"),
    ]
    return steps if flush_later else [*steps, step("flush", run_flush, then, "", "tlbs mmu_lock")]


def end_invalidation(then: str, reads: str, still_found: Callable[[World, int], bool]) -> AtomicStep:
    """The second half. still_found: whether the end looks for the same thing again and finds it.

    kvm_gmem_invalidate_end asks the bindings a second time, so they had better not change in between.
    """

    def run(world: World, me: int) -> World | None:
        if not still_found(world, me):
            return go(world, me, then)
        return go(finish(world), me, then) if world.mmu_lock.idle else None

    return step("invalidate-end", run, then, f"{reads} mmu_lock", "invalidation seq")


def whole(setting: Setting, start: int, stop: int) -> tuple[int, int]:
    """The naturally aligned blocks that the range touches."""
    return setting.block_of(start), setting.block_of(stop - 1) + setting.block
