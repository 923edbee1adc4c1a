"""The race explorer decides a level a second time (races.memory.decide_order): the model's levels say the same.

Each random world is built twice, as the explorer's few numbers and as a VM of the model with pages of 4K and 8K: slot,
binding, attributes, what was allocated, punched and poisoned before. Every frame of the slot must get the same order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from random import Random

from guestmem.geometry import Geometry
from guestmem.model.fault import STEPS, decide_level
from guestmem.model.page_fault import Fault
from guestmem.model.process import Process
from guestmem.model.profiles import NEXT, Machine
from guestmem.objects import GuestMemfd, Kvm, Vm
from guestmem.races import scenario
from guestmem.races.memory import allocate, decide_order, recompute_mixed, truncate
from guestmem.races.world import HOST, NOTHING, Actor, Setting, World, WorldSlot
from guestmem.rules import Rule
from guestmem.uapi import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_SW_PROTECTED_VM,
    PROT_READ,
    PROT_WRITE,
)

PAGE = 4096
FRAMES = 10
TWO_SIZES = Geometry("two-sizes", PAGE, (0, 1))
WORLDS = 3000


class AnyOffset(Rule):
    """No alignment rule: what is left is what the explorer has too."""

    __slots__ = ()
    name = "any-offset"
    statement = "any offset will do"


@dataclass
class Both:
    """One world, twice."""

    setting: Setting
    world: World
    slot: WorldSlot
    vm: Vm
    gmem: GuestMemfd

    def private(self, start: int, stop: int) -> None:
        """Make frames private."""
        bits = (1 << stop) - (1 << start)
        world = self.world._replace(attributes=self.world.attributes | bits)
        self.world = recompute_mixed(self.setting, world, world.slots, start, stop)
        self.vm.set_memory_attributes(start * PAGE, (stop - start) * PAGE, KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def allocate(self, index: int) -> None:
        """Put a folio at a file index."""
        self.world = allocate(self.setting, self.world, index)
        self.gmem.allocate(index * PAGE, PAGE)

    def punch(self, start: int, stop: int) -> None:
        """Free file indexes."""
        self.world = truncate(self.setting, self.world, start, stop)
        self.gmem.punch_hole(start * PAGE, (stop - start) * PAGE)

    def poison(self, index: int) -> None:
        """Mark the page at a file index as broken, if there is one."""
        entry = self.world.cache[index]
        if entry is not None:
            self.world = self.world._replace(poisoned=self.world.poisoned | 1 << entry[0])
            self.gmem.poison(index * PAGE)

    def explorer_order(self, frame: int) -> int | None:
        """The explorer's order for a fault on a frame; None where the page is poisoned."""
        private = self.world.is_private(frame)
        if not private:
            page = HOST + self.slot.hva + frame - self.slot.base
            return decide_order(self.setting, self.world, Actor("", page=page), self.slot, frame)
        index = frame - self.slot.base + self.slot.pgoff
        self.world = allocate(self.setting, self.world, index)
        entry = self.world.cache[index]
        assert entry is not None
        if self.world.poisoned >> entry[0] & 1:
            return None
        fault = Actor("", private=True, page=entry[0], folio_order=entry[1])
        return decide_order(self.setting, self.world, fault, self.slot, frame)

    def model_order(self, frame: int) -> int | None:
        """The model's: its own steps up to the level, without a leaf."""
        fault = Fault(self.vm.model, frame)
        for step in STEPS[: STEPS.index(decide_level) + 1]:
            if step(fault) is not None:
                return None
        return fault.order


def random_world(kvm: Kvm, random: Random) -> Both:
    """A slot over a file and over memory of the host, and what happened to the file before."""
    npages = random.choice((2, 4, 6, 8))
    size = random.randint(1, min(4, npages))
    slot = WorldSlot(
        0, random.randint(0, 4), size, random.randint(0, npages - size), random.randint(0, 3), True, "valid"
    )
    setting = Setting(order=1, npages=npages)
    start = scenario("fresh/touch+touch").programs()[1]
    world = start._replace(slots=(slot,), bindings=(NOTHING,) * npages, cache=(None,) * npages, attributes=0, mixed=0)
    vm = kvm.create_vm(KVM_X86_SW_PROTECTED_VM)
    gmem = vm.create_guest_memfd(npages * PAGE)
    hva = kvm.model.anonymous(16 * PAGE, PROT_READ | PROT_WRITE, 2 * PAGE, 1) + (2 + slot.hva) * PAGE
    vm.set_user_memory_region2(
        0, gpa=slot.base * PAGE, size=size * PAGE, userspace_addr=hva, guest_memfd=gmem,
        guest_memfd_offset=slot.pgoff * PAGE,
    )  # fmt: skip
    both = Both(setting, world, slot, vm, gmem)
    for _ in range(random.randint(0, 2)):
        first = random.randint(0, FRAMES - 1)
        both.private(first, random.randint(first + 1, FRAMES))
    for _ in range(random.randint(0, 4)):
        index = random.randrange(npages)
        match random.choice(("allocate", "allocate", "punch", "poison")):
            case "allocate":
                both.allocate(index)
            case "punch":
                both.punch(index, random.randint(index + 1, npages))
            case _:
                both.poison(index)
    return both


def test_the_explorer_decides_every_level_as_the_model_does() -> None:
    random = Random(1)
    seen: Counter[tuple[bool, int | None]] = Counter()
    for number in range(WORLDS):
        with Kvm(Process(NEXT, Machine(geometry=TWO_SIZES, gmem_2m=True), AnyOffset())) as kvm:
            both = random_world(kvm, random)
            for frame in range(both.slot.base, both.slot.end):
                order = both.explorer_order(frame)
                assert both.model_order(frame) == order, (number, frame, both.world)
                seen[both.world.is_private(frame), order] += 1

    assert min(seen[which] for which in ((True, 0), (True, 1), (True, None), (False, 0), (False, 1))) > 20, seen
