"""vCPUs: a guest access that faults until it is answered, and KVM_PRE_FAULT_MEMORY; and a signal to either.

Around the fault are the access through TLB and tables, the SRCU read-side section, and the retry: under KVM_RUN a retry
goes back to the guest and leaves the section in between, inside a pre-fault it does not.
"""

from __future__ import annotations

from dataclasses import dataclass

from guestmem.races.fault import RETRY, FaultSteps, attribute_fields, leave_srcu, leave_with
from guestmem.races.step import Program, Run, end, go, program, step
from guestmem.races.world import NOTHING, Actor, Setting, World, actor_bit

__all__ = ("PreFaultPage", "Signal", "GuestAccess")


@dataclass(frozen=True, slots=True)
class GuestAccess:
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
            step("read-attribute", _read_attribute(self.frame, setting), "look-up-slot", attribute_fields(setting)),
            *FaultSteps(self.frame, setting, "resume", mmio="mmio", error="memory-fault").steps(),
            step("resume", _resume, "access", "", "+srcu"),
            step(RETRY, _resume, "access", "", "+srcu"),
        )

    def _access(self, world: World, me: int) -> World:
        leaf = world.tlbs[me]
        if leaf is None or not leaf.start <= self.frame < leaf.end:
            leaf = world.leaf_at(self.frame)
        if leaf is None:
            return go(_enter_srcu(world, me), me, "read-attribute", root=world.root_generation)
        tlbs = list(world.tlbs)
        tlbs[me] = leaf
        return end(world._replace(tlbs=tuple(tlbs)), me, "done")


@dataclass(frozen=True, slots=True)
class PreFaultPage:
    """KVM_PRE_FAULT_MEMORY of one page: one SRCU section for the whole call, the attribute read once.

    Its page-table root was loaded before, at the latest when the vCPU last ran: it is of generation 0.
    """

    frame: int

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"pre-fault of gfn {self.frame}"

    def program(self, setting: Setting) -> Program:
        """enter, then the fault until it is mapped or fails."""
        return program(
            step(
                "enter",
                lambda world, me: go(_enter_srcu(world, me), me, "read-attribute"),
                "read-attribute",
                "",
                "+srcu",
            ),
            step("read-attribute", _read_attribute(self.frame, setting), "look-up-slot", attribute_fields(setting)),
            *FaultSteps(self.frame, setting, "leave", mmio="ENOENT", error="EFAULT").steps(),
            step(RETRY, self._retry(setting), "look-up-slot end", "signals root_generation", "+srcu"),
            step("leave", lambda world, me: leave_with(world, me, "done"), "end", "", "+srcu"),
        )

    def _retry(self, setting: Setting) -> Run:
        protocol = setting.protocol

        def run(world: World, me: int) -> World:
            fault = world.actors[me]
            if world.signals & actor_bit(me):
                return leave_with(world, me, "EINTR")
            if fault.slot_invalid and protocol.pre_fault_gives_up:
                return leave_with(world, me, "EAGAIN")
            root = world.root_generation if protocol.pre_fault_renews_root else fault.root
            forgotten = {
                "slot": NOTHING,
                "slot_invalid": False,
                "seq": 0,
                "page": NOTHING,
                "folio_order": 0,
                "order": 0,
            }
            return go(world, me, "look-up-slot", root=root, **forgotten)

        return run


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal to the thread of another actor."""

    to: int

    @property
    def label(self) -> str:
        """The head of its column."""
        return f"signal to actor {self.to + 1}"

    def program(self, setting: Setting) -> Program:
        """One step."""

        def run(world: World, me: int) -> World:
            return end(world._replace(signals=world.signals | actor_bit(self.to)), me, "sent")

        return program(step("send-signal", run, "end", "", "signals"))


def _read_attribute(frame: int, setting: Setting) -> Run:
    def run(world: World, me: int) -> World:
        return go(world, me, "look-up-slot", private=setting.private_mem and world.is_private(frame))

    return run


def _enter_srcu(world: World, me: int) -> World:
    readers, awaited = world.srcu
    return world._replace(srcu=(readers | actor_bit(me), awaited))


def _resume(world: World, me: int) -> World:
    """Back into the guest: the read-side section ends, and everything the fault knew is forgotten."""
    actors = list(world.actors)
    actors[me] = Actor("access")
    return leave_srcu(world, me)._replace(actors=tuple(actors))
