"""The model against the naive oracle: random histories in small worlds, compared in full after every step.

Geometries have 4 and 16 pages per huge page, files and slots a few dozen pages, so what is rare in practice is common
here. After each operation errno, values, every folio, every leaf with its level, attributes and free host pages must be
equal, and the model's invariants must hold.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from oracle import BUFFER_PAGES, GPA_PAGES, File, Kernel, Oracle, P, Refused
from oracle import Vm as OracleVm

import guestmem
from guestmem.backend import Exit, Touch
from guestmem.errors import HostSignal, KvmError
from guestmem.geometry import Geometry
from guestmem.model.process import Process
from guestmem.model.profiles import PROFILES
from guestmem.objects import GuestMemfd, Mapping, Pin, Vm
from guestmem.rules import RULES
from guestmem.uapi import PROT_READ, PROT_WRITE

TINY = Geometry("tiny", P, (0, 2, 4))
PRIVATE = guestmem.KVM_MEMORY_ATTRIBUTE_PRIVATE
GFN = st.sampled_from((0, 0, 1, 2, 3, 4, 5, 8, 12, 15, 16, 16, 17, 19, 20, 31, 32, 33, 40, 47))
COUNT = st.sampled_from((1, 1, 2, 3, 4, 4, 5, 7, 8, 15, 16, 16, 17, 20, 32, 33))
PGOFF = st.sampled_from((0, 0, 0, 1, 3, 4, 4, 8, 16, 16, 17, 20, 32))
WHICH = st.integers(0, 5)
PICK = st.integers(0, 255)
WORD = st.integers(1, 1 << 30)


def errno_of(call: object, *arguments: object, **named: object) -> tuple[str | None, object]:
    """(errno or signal name, result) of a call on the model or on the oracle."""
    assert callable(call)
    try:
        return None, call(*arguments, **named)
    except KvmError as refused:
        return refused.name, None
    except HostSignal as signal:
        return signal.signal, None
    except Refused as refused:
        return refused.args[0], None


def ended(exits: list[Exit]) -> tuple[str, int]:
    """A touch's exits in the oracle's words."""
    first = exits[0]
    if first.kind == "done":
        return "done", first.value or 0
    if first.kind == "mmio":
        return "mmio", 0
    who = "host" if first.kind == "unknown" else "private" if first.flags else "shared"
    return f"{who} {first.errno}", 0


class Comparison(RuleBasedStateMachine):
    """One world on both sides. Subclasses name the profile."""

    profile = "v7.2"

    @initialize(
        kinds=st.lists(st.booleans(), min_size=1, max_size=2),
        alignment=st.sampled_from(RULES),
        huge_pages=st.none() | st.tuples(st.integers(0, 60), st.integers(0, 6), st.integers(0, 2)),
        host_order=st.sampled_from(TINY.orders),
        thp=st.booleans(),
        start=st.fixed_dictionaries(
            {
                "flags": st.sampled_from((0, 1, 3)),
                "order": st.sampled_from(TINY.orders),
                "gfn": GFN,
                "pages": COUNT,
                "pgoff": PGOFF,
                "private": PICK,
            }
        ),
    )
    def open_both(
        self,
        kinds: list[bool],
        alignment: guestmem.rules.Rule,
        huge_pages: tuple[int, int, int] | None,
        host_order: int,
        thp: bool,
        start: dict[str, Any],
    ) -> None:
        """Most histories are about a file with a slot and some private memory: begin with them, where they go."""
        profile = PROFILES[self.profile]
        pools = dict(zip(TINY.orders, huge_pages, strict=True)) if huge_pages else {}
        machine = replace(profile.machine, geometry=TINY, pools=tuple(pools.items()), gpa_bits=40, gmem_2m=thp)
        if profile.huge:
            machine = machine.converting(in_place=False)
        self.kvm = guestmem.open("model", profile=self.profile, machine=machine, rule=alignment)
        thp_order = TINY.orders[1] if thp and profile.huge else 0
        self.oracle = Oracle(Kernel(self.profile, profile.huge), TINY, alignment, pools, host_order, thp_order)
        process = self.kvm.model
        assert isinstance(process, Process)
        self.hva = process.anonymous(BUFFER_PAGES * P, PROT_READ | PROT_WRITE, 16 * P, host_order)
        self.vms: list[tuple[Vm, OracleVm]] = []
        for private in kinds:
            type = int(private and 1 in machine.vm_types)
            self.vms.append((self.kvm.create_vm(type), OracleVm(bool(type))))
        self.oracle.vms = [plain for _, plain in self.vms]
        self.vcpus = [vm.create_vcpu(0) for vm, _ in self.vms]
        self.next_vcpu = 1
        self.files: list[tuple[GuestMemfd, File]] = []
        self.mappings: list[tuple[Mapping, File, int]] = []
        self.pins: list[tuple[Pin, File, set[int]]] = []
        pages = (start["pages"] + start["pgoff"] >> start["order"]) + 1
        self.create_file(0, pages, 0, start["flags"], start["order"])
        self.set_region(0, 0, 4, start["gfn"], start["pages"], 0, 0, start["pgoff"], 0)
        self.set_attributes(0, start["private"], start["pages"], True, 0)

    def vm(self, which: int) -> tuple[Vm, OracleVm, int]:
        number = which % len(self.vms)
        return (*self.vms[number], number)

    def frame(self, vm: OracleVm, pick: int) -> int:
        """A frame worth touching: mostly one that a slot has, sometimes one near by."""
        frames = [gfn for slot in vm.slots.values() for gfn in range(slot.base, min(slot.base + slot.npages, 96))]
        return frames[pick % len(frames)] if frames and pick % 8 else pick % 48

    def index(self, file: File, pick: int) -> int:
        """An index of a file worth changing: mostly one that has a page."""
        present = sorted(file.folios)
        return present[pick % len(present)] if present and pick % 8 else pick % file.npages

    def file(self, which: int) -> tuple[GuestMemfd, File]:
        return self.files[which % len(self.files)]

    @rule(
        which=WHICH,
        pages=COUNT,
        odd=st.sampled_from((0, 0, 0, 0, 1)),
        flags=st.sampled_from((0, 0, 1, 3, 3, 2, 4)),
        order=st.sampled_from(TINY.orders),
    )
    def create_file(self, which: int, pages: int, odd: int, flags: int, order: int) -> None:
        vm, plain_vm, _ = self.vm(which)
        if not PROFILES[self.profile].huge:
            order = 0
        elif flags & 4:
            flags = 0
        size = min(pages, 64 >> order) * (P << order) + odd
        got, gmem = errno_of(vm.create_guest_memfd, size, flags, page_size=P << order)
        expected, file = errno_of(self.oracle.create_file, plain_vm, size, flags, order)
        assert got == expected
        if isinstance(gmem, GuestMemfd) and isinstance(file, File):
            self.files.append((gmem, file))
        self.compare()

    @rule(
        which=WHICH,
        slot=st.integers(0, 3),
        flags=st.sampled_from((0, 0, 1, 2, 4, 4, 4, 4, 5, 8)),
        gfn=GFN,
        pages=COUNT,
        host_page=st.none() | st.sampled_from((0, 1, 4, 16, 20, 80, BUFFER_PAGES)),
        file=WHICH,
        pgoff=PGOFF,
        odd=st.sampled_from((0,) * 12 + (1, 2, 3)),
    )
    def set_region(
        self,
        which: int,
        slot: int,
        flags: int,
        gfn: int,
        pages: int,
        host_page: int | None,
        file: int,
        pgoff: int,
        odd: int,
    ) -> None:
        vm, plain_vm, _ = self.vm(which)
        gmem, plain_file = self.file(file) if self.files else (None, None)
        gpa, size, offset = gfn * P + (odd == 1), pages * P + (odd == 2), pgoff * P + (odd == 3)
        fd = -1 if gmem is None else gmem.fd
        if host_page is None:
            host_page = gfn  # congruent, so that host memory can be mapped huge
        got, _ = errno_of(
            self.kvm.backend.set_user_memory_region2,
            vm.fd,
            slot,
            flags,
            gpa,
            size,
            self.hva + host_page * P,
            fd,
            offset,
        )
        expected, _ = errno_of(self.oracle.set_region, plain_vm, slot, flags, gpa, size, host_page, plain_file, offset)
        assert got == expected
        self.compare()

    @rule(which=WHICH, slot=st.integers(0, 3), how=st.sampled_from(("move", "log", "same", "delete")), gfn=GFN)
    def change_region(self, which: int, slot: int, how: str, gfn: int) -> None:
        vm, plain_vm, _ = self.vm(which)
        old = plain_vm.slots.get(slot)
        if old is None:
            return
        base = {"move": gfn, "delete": 0}.get(how, old.base)
        if how == "move" and gfn > 40:
            base = GPA_PAGES - 1
        flags = 0 if how == "delete" else old.flags ^ (how == "log")
        size = 0 if how == "delete" else old.npages * P
        arguments = (slot, flags, base * P, size)
        got, _ = errno_of(self.kvm.backend.set_user_memory_region2, vm.fd, *arguments, self.hva + old.hva * P, -1, 0)
        expected, _ = errno_of(self.oracle.set_region, plain_vm, *arguments, old.hva, None, 0)
        assert got == expected
        self.compare()

    @rule(which=WHICH, pick=PICK, pages=st.just(0) | COUNT, private=st.booleans(), odd=st.sampled_from((0,) * 7 + (1,)))
    def set_attributes(self, which: int, pick: int, pages: int, private: bool, odd: int) -> None:
        vm, plain_vm, _ = self.vm(which)
        gfn = self.frame(plain_vm, pick)
        got, _ = errno_of(vm.set_memory_attributes, gfn * P, pages * P + odd, PRIVATE * private)
        expected, _ = errno_of(self.oracle.set_attributes, plain_vm, gfn * P, pages * P + odd, private=private)
        assert got == expected
        self.compare()

    @precondition(lambda self: self.files)
    @rule(which=WHICH, pick=PICK, pages=st.just(0) | COUNT, private=st.booleans(), odd=st.sampled_from((0,) * 7 + (1,)))
    def convert(self, which: int, pick: int, pages: int, private: bool, odd: int) -> None:
        gmem, file = self.file(which)
        if gmem.fd not in self.open_fds():
            return
        offset, size = self.index(file, pick) * P, pages * P + odd
        done = self.kvm.backend.gmem_set_memory_attributes(gmem.fd, offset, size, PRIVATE * private, 0)
        got = None if done.refused is None else done.refused.name, done.error_offset
        assert got == self.oracle.convert(file, offset, size, private=private)
        self.compare()

    @precondition(lambda self: self.mappings)
    @rule(which=WHICH, page=st.integers(0, 40), count=st.sampled_from((1, 1, 2, 4)))
    def pin(self, which: int, page: int, count: int) -> None:
        mapping, file, pages = self.mappings[which % len(self.mappings)]
        page %= pages
        held = range(page, min(page + count, pages))
        expected = next(
            filter(None, (errno_of(self.oracle.host_page, file, index, mapping.addr)[0] for index in held)), None
        )
        got, pin = errno_of(mapping.pin, page * P, len(held) * P)
        assert got == (expected and "EFAULT")
        if isinstance(pin, Pin):
            file.pins.append(set(held))
            self.pins.append((pin, file, file.pins[-1]))
        self.compare()

    @precondition(lambda self: self.pins)
    @rule(which=WHICH)
    def unpin(self, which: int) -> None:
        pin, file, pages = self.pins.pop(which % len(self.pins))
        pin.close()
        file.pins = [each for each in file.pins if each is not pages]

    @precondition(lambda self: self.files)
    @rule(which=WHICH, pick=PICK, pages=st.just(0) | COUNT, punch=st.booleans(), odd=st.integers(0, 15))
    def fallocate(self, which: int, pick: int, pages: int, punch: bool, odd: int) -> None:
        gmem, file = self.file(which)
        if not file.users:
            return
        start = self.index(file, pick)
        offset, size = start * P + (odd == 1), pages * P + (odd == 2)
        got, _ = errno_of(gmem.punch_hole if punch else gmem.allocate, offset, size)
        expected, _ = errno_of(self.oracle.fallocate, file, offset, size, punch=punch)
        assert got == expected
        self.compare()

    @precondition(lambda self: self.files)
    @rule(which=WHICH, pick=PICK)
    def poison(self, which: int, pick: int) -> None:
        gmem, file = self.file(which)
        index = self.index(file, pick)
        if gmem.fd in self.open_fds():
            gmem.poison(index * P)
            self.oracle.poison(file, index)
            self.compare()

    @rule(which=WHICH, picks=st.lists(PICK, min_size=1, max_size=8), write=st.booleans(), word=WORD)
    def touch(self, which: int, picks: list[int], write: bool, word: int) -> None:
        _, plain_vm, number = self.vm(which)
        for pick in picks:
            gfn = self.frame(plain_vm, pick)
            exits = self.vcpus[number].touch(Touch(gfn * P, "w" if write else "r", 8, word if write else 0))
            assert ended(exits) == self.oracle.touch(plain_vm, gfn, write=write, value=word)
        self.compare()

    @rule(which=WHICH, pick=PICK, pages=st.just(0) | COUNT)
    def pre_fault(self, which: int, pick: int, pages: int) -> None:
        vm, plain_vm, _ = self.vm(which)
        gfn = self.frame(plain_vm, pick)
        vcpu = vm.create_vcpu(self.next_vcpu)  # a new one has no outdated root (docs/kernel-behaviour.md#pre-fault)
        self.next_vcpu += 1
        done = self.kvm.backend.pre_fault_memory(vcpu.fd, gfn * P, pages * P, 0)
        got = None if done.refused is None else done.refused.name, done.gpa, done.size
        assert got == self.oracle.pre_fault(plain_vm, gfn * P, pages * P)
        self.compare()

    @precondition(lambda self: self.files)
    @rule(which=WHICH, pages=COUNT)
    def map(self, which: int, pages: int) -> None:
        gmem, file = self.file(which)
        if gmem.fd not in self.open_fds():
            return
        got, mapping = errno_of(gmem.mmap, pages * P)
        assert got == (None if file.flags & 1 else "ENODEV")
        if isinstance(mapping, Mapping):
            file.users += 1
            self.mappings.append((mapping, file, pages))

    @precondition(lambda self: self.mappings)
    @rule(which=WHICH, page=st.integers(0, 40), write=st.booleans(), word=WORD)
    def host_access(self, which: int, page: int, write: bool, word: int) -> None:
        mapping, file, pages = self.mappings[which % len(self.mappings)]
        page %= pages
        expected, _ = errno_of(self.oracle.host_page, file, page, mapping.addr)
        if write:
            got, _ = errno_of(mapping.write, page * P, word)
            if expected is None:
                file.words[page] = word
        else:
            got, value = errno_of(mapping.read, page * P)
            assert value == (None if expected else file.words.get(page, 0))
        assert got == expected
        self.compare()

    @precondition(lambda self: self.mappings)
    @rule(which=WHICH)
    def unmap(self, which: int) -> None:
        mapping, file, _ = self.mappings.pop(which % len(self.mappings))
        mapping.unmap()
        file.present.pop(mapping.addr, None)
        file.broken.pop(mapping.addr, None)
        self.oracle.drop_file(file)
        self.compare()

    @rule(page=st.integers(0, BUFFER_PAGES - 1), write=st.booleans(), word=WORD)
    def host_memory(self, page: int, write: bool, word: int) -> None:
        if write:
            self.kvm.write(self.hva + page * P, word)
            self.oracle.buffer_page(page, write=True)
            self.oracle.buffer[page] = word
        self.oracle.buffer_page(page, write=False)
        assert self.kvm.read(self.hva + page * P) == self.oracle.buffer.get(page, 0)

    @precondition(lambda self: self.files)
    @rule(which=WHICH, duplicate=st.booleans())
    def close_file(self, which: int, duplicate: bool) -> None:
        gmem, file = self.file(which)
        if gmem.fd not in self.open_fds():
            return
        if duplicate:
            file.users += 1
            self.files.append((gmem.dup(), file))
        else:
            gmem.close()
            self.oracle.drop_file(file)
            self.files = [pair for pair in self.files if pair[0] is not gmem]
        self.compare()

    def open_fds(self) -> set[int]:
        """Descriptors of files that are still open."""
        return {gmem.fd for gmem, file in self.files if file.users}

    def compare(self) -> None:
        """Everything either side knows, page by page."""
        self.kvm.check_invariants()
        for vm, plain in self.vms:
            assert {gfn for start, end, _ in vm.model.attributes for gfn in range(start, end)} == plain.private
            leaves = {}
            for start, end, leaf in vm.model.stage2.leaves:
                for gfn in range(start, end):
                    is_file = leaf.source is not self.kvm.model.host.anonymous
                    page = gfn - leaf.delta - (0 if is_file else self.hva // P)
                    leaves[gfn] = gfn - gfn % (1 << leaf.order), leaf.order, is_file, page
            expected = {
                gfn: (first, order, isinstance(source, File), page)
                for gfn, (first, order, source, page) in plain.leaves.items()
            }
            assert leaves == expected
        for gmem, file in self.files:
            folios = {
                index: (index - index % (1 << order), order)
                for start, end, order in gmem.model.cache.folios
                for index in range(start, end)
            }
            assert folios == file.folios
            private = {index for start, end, _ in gmem.model.attributes for index in range(start, end)}
            assert private == file.private
        for order, free in self.oracle.free.items():
            assert self.kvm.model.pools.free(order) == free

    def teardown(self) -> None:
        if hasattr(self, "kvm"):
            self.kvm.backend.shutdown()
            assert self.kvm.model.pools.used() == {}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_model_and_the_oracle_agree_on_every_history(profile: str) -> None:
    machine = type("Comparison", (Comparison,), {"profile": profile})
    run_state_machine_as_test(machine, settings=settings(max_examples=200, stateful_step_count=40, deadline=None))
