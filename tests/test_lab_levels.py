"""A real MMU maps what the model says, by page size: KVM's own count after every guest access, on the lab.

One history on both: slots whose geometry allows huge pages or not, attributes that mix them, dirty logging that splits
them. The host's memory is of transparent huge pages, or of a 1G page, which the model is told.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from guestmem import lab
from guestmem.backend import Backend, Boot, Statistics, Touch
from guestmem.harness import BOOT_GPA, BOOT_SIZE, BOOT_SLOT
from guestmem.lab.machine import LabMachine
from guestmem.model.process import Process
from guestmem.model.profiles import profile_named
from guestmem.uapi import (
    KVM_CAP_MEMORY_ATTRIBUTES,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    MAP_ANONYMOUS,
    MAP_HUGETLB,
    MAP_PRIVATE,
    PROT_READ,
    PROT_WRITE,
)
from guestmem.units import GIB, MIB

pytestmark = pytest.mark.lab

P = 4096
RW = PROT_READ | PROT_WRITE
BUFFER = 16 * MIB
MADV_HUGEPAGE = 14
MAP_HUGE_1GB = 30 << 26


@pytest.fixture(scope="module")
def machine() -> Iterator[LabMachine]:
    hardware = lab.Hardware(memory=3 * GIB, kernel_arguments=("hugepagesz=1G", "hugepages=1"))
    with lab.boot(hardware=hardware) as machine:
        yield machine


@dataclass
class Guest:
    """One VM on one backend, with a vCPU, the recorder's boot slot and a buffer of huge pages."""

    backend: Backend
    vm: int
    vcpu: int
    boot: Boot
    hva: int

    def touch(self, gpa: int, rw: Literal["r", "w"]) -> tuple[str, dict[int, int]]:
        """How an access ended, and what is mapped after it by page size, the guest's own code not counted."""
        assert isinstance(self.backend, Statistics)
        ((*_, last),) = self.backend.run_touch(self.vcpu, self.boot, [Touch(gpa, rw, 8, 1)])
        mapped = self.backend.mapped_pages(self.vm)
        mapped[P] = mapped.get(P, 0) - self.backend.boot_pages
        return last.kind, {size: count for size, count in mapped.items() if count}

    def slot(self, number: int, gpa: int, size: int, offset: int, *, flags: int = 0, gmem: int = -1) -> None:
        """A slot of the buffer from offset on; size 0 deletes."""
        flags |= KVM_MEM_GUEST_MEMFD if gmem >= 0 else 0
        self.backend.set_user_memory_region2(self.vm, number, flags, gpa, size, self.hva + offset, gmem, 0)


def guest(backend: Backend, type: int, page: int) -> Guest:
    vm = backend.create_vm(backend.open_kvm(), type)
    boot = Boot(BOOT_GPA, backend.anonymous(BOOT_SIZE, RW, 2 * MIB))
    backend.set_user_memory_region(vm, BOOT_SLOT, 0, BOOT_GPA, BOOT_SIZE, boot.hva)
    return Guest(backend, vm, backend.create_vcpu(vm, 0), boot, buffer(backend, page))


def buffer(backend: Backend, page: int) -> int:
    """Host memory of one page size: BUFFER bytes, or one page of 1G."""
    if isinstance(backend, Process):
        return backend.anonymous(max(BUFFER, page), RW, max(2 * MIB, page), (page // P).bit_length() - 1)
    if page == GIB:
        return backend.mmap(-1, GIB, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_HUGE_1GB, 0)
    hva = backend.anonymous(BUFFER, RW, 2 * MIB)
    if page == 2 * MIB:
        backend.madvise(hva, BUFFER, MADV_HUGEPAGE)
        for offset in range(0, BUFFER, page):
            backend.host_write(hva + offset, 8, 1)
    return hva


@pytest.fixture(params=[P, 2 * MIB], ids=["4K", "2M"])
def page(request: pytest.FixtureRequest) -> int:
    """The host's page size."""
    size: int = request.param
    return size


@pytest.fixture(params=[0, 1], ids=["default", "protected"])
def pair(request: pytest.FixtureRequest, machine: LabMachine, page: int) -> Iterator[tuple[Guest, Guest]]:
    """The same VM on the lab and on the model."""
    with lab.LabBackend.on(machine) as real, Process(profile_named("v6.12")) as model:
        yield guest(real, request.param, page), guest(model, request.param, page)


GEOMETRIES = [
    # gpa, size, offset in the buffer: congruent or not, head and tail or not
    (4 * MIB, 8 * MIB, 0),
    (4 * MIB, 8 * MIB, P),
    (4 * MIB + P, 8 * MIB, P),
    (4 * MIB + P, 8 * MIB, 2 * P),
    (4 * MIB + P, 2 * MIB, P),
    (6 * MIB - P, 2 * MIB + 2 * P, 2 * MIB - P),
    (4 * MIB, 2 * MIB - P, 0),
    (5 * MIB, 4 * MIB, MIB),
    (GIB, 8 * MIB, 2 * MIB),
]


@pytest.mark.parametrize(("gpa", "size", "offset"), GEOMETRIES)
def test_each_page_of_a_slot_is_mapped_at_the_level_its_geometry_allows(
    pair: tuple[Guest, Guest], gpa: int, size: int, offset: int
) -> None:
    seen: list[list[tuple[str, dict[int, int]]]] = []
    for one in pair:
        one.slot(0, gpa, size, offset)
        places = sorted({gpa, gpa + size - P, *range(gpa, gpa + size, 2 * MIB)})
        seen.append([one.touch(place, "w") for place in places])
    assert seen[0] == seen[1]
    assert seen[0][-1][1], "something is mapped"


@pytest.mark.parametrize("page", [GIB], ids=["1G"])
def test_a_1g_page_is_mapped_by_one_leaf_until_a_part_of_it_is_private(pair: tuple[Guest, Guest]) -> None:
    seen = []
    for one in pair:
        one.slot(0, 4 * GIB, GIB, 0)
        seen.append([one.touch(4 * GIB + 3 * MIB, "w")])
        if one.backend.check_extension(one.vm, KVM_CAP_MEMORY_ATTRIBUTES):
            one.backend.set_memory_attributes(one.vm, 4 * GIB + 8 * MIB, P, KVM_MEMORY_ATTRIBUTE_PRIVATE, 0)
            seen[-1] += [one.touch(4 * GIB + 3 * MIB, "w"), one.touch(4 * GIB + 9 * MIB, "r")]
    assert seen[0] == seen[1]
    assert seen[0][0] == ("done", {GIB: 1})
    assert seen[0][1:] in ([], [("done", {2 * MIB: 1}), ("done", {2 * MIB: 1, P: 1})])


@pytest.mark.parametrize("seed", range(3))
def test_a_random_history_of_slots_attributes_and_accesses_maps_the_same(pair: tuple[Guest, Guest], seed: int) -> None:
    """Whatever changes in between, after each access the counts agree; the first that do not name the step."""
    dice = random.Random(seed)
    protected = pair[0].backend.check_extension(pair[0].vm, KVM_CAP_MEMORY_ATTRIBUTES) != 0
    gmems = [one.backend.create_guest_memfd(one.vm, BUFFER, 0) if protected else -1 for one in pair]
    where = (GIB, BUFFER, 0)
    for one, gmem in zip(pair, gmems, strict=True):
        one.slot(0, *where, gmem=gmem)
    log = 0
    history = []
    for _ in range(80):
        step = dice.choice(["touch"] * 6 + ["attributes"] * 2 + ["flags", "move"])
        first, count = dice.randrange(BUFFER // P), dice.choice([1, 2, 511, 512, 513, 1024])
        count = min(count, BUFFER // P - first)
        if dice.random() < 0.5:
            first, count = first & ~511, 512
        history.append((step, first, count))
        if step == "touch":
            rw: Literal["r", "w"] = "w" if dice.random() < 0.5 else "r"
            answers = [one.touch(where[0] + first * P, rw) for one in pair]
            assert answers[0] == answers[1], history
        elif step == "attributes" and protected:
            private = dice.choice((0, KVM_MEMORY_ATTRIBUTE_PRIVATE))
            for one in pair:
                one.backend.set_memory_attributes(one.vm, where[0] + first * P, count * P, private, 0)
        elif step == "flags" and not protected:
            log ^= KVM_MEM_LOG_DIRTY_PAGES
            for one in pair:
                one.slot(0, *where, flags=log)
        elif step == "move":
            log, offset = 0, dice.choice((0, 0, P, 2 * MIB))
            where = (GIB + dice.choice((0, 0, P, 2 * MIB)), BUFFER - offset, offset)
            for one, gmem in zip(pair, gmems, strict=True):
                one.slot(0, 0, 0, 0)
                one.slot(0, *where, gmem=gmem)
