"""Every refusal of the model is a named check, and every operation shows the questions it asked."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

import guestmem.model
from guestmem.errors import HostSignal, KvmError
from guestmem.model.checks import Observation, observing
from guestmem.model.process import Process
from guestmem.model.profiles import NEXT, RESTRICTEDMEM, V7_3, V7_4, Machine, Profile
from guestmem.recordings import vocabulary
from guestmem.uapi import FALLOC_FL_KEEP_SIZE, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from guestmem.units import MIB

P = 4096
RW = PROT_READ | PROT_WRITE
KEEP = FALLOC_FL_KEEP_SIZE
MODEL = Path(guestmem.model.__file__).parent


class World:
    """A process with one of everything."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.kvm = process.open_kvm()
        self.vm = process.create_vm(self.kvm, 1)
        self.vcpu = process.create_vcpu(self.vm, 0)
        self.gmem = process.create_guest_memfd(self.vm, 4 * P, 0) if process.profile.revision is None else -1
        self.memfd = process.open_aux("memfd")
        self.buffer = process.mmap(-1, 4 * P, RW, MAP_PRIVATE | MAP_ANONYMOUS, 0)
        process.set_user_memory_region(self.vm, 0, 0, 0, 2 * P, self.buffer)


Act = Callable[[Process, World], object]


def pre_fault_of_private_memory_without_a_file(process: Process, world: World) -> None:
    process.set_memory_attributes(world.vm, 0, P, 8, 0)
    raised(process.pre_fault_memory(world.vcpu, 0, P, 0).refused)


def pre_fault_of_unmapped_host_memory(process: Process, world: World) -> None:
    process.munmap(world.buffer, P)
    raised(process.pre_fault_memory(world.vcpu, 0, P, 0).refused)


def convert(
    process: Process,
    world: World,
    offset: int = 0,
    size: int = P,
    attributes: int = 8,
    flags: int = 0,
    reserved: Sequence[int] = (),
) -> KvmError | None:
    shared = process.create_guest_memfd(world.vm, 4 * P, 3)
    return process.gmem_set_memory_attributes(shared, offset, size, attributes, flags, reserved).refused


def convert_what_is_held(process: Process, world: World) -> None:
    shared = process.create_guest_memfd(world.vm, P, 3)
    process.pin(process.mmap(shared, P, RW, MAP_SHARED, 0), P)
    raised(process.gmem_set_memory_attributes(shared, 0, P, 8, 0).refused)


def kernel_of(op: str) -> Profile:
    """The profile that has most checks of the operation."""
    if op == "memfd_restricted":
        return RESTRICTEDMEM
    if op in ("set_memory_attributes", "pre_fault"):
        return V7_3  # attributes of VMs
    return V7_4 if op.startswith("gmem") else NEXT


# Each operation of the recordings: one that is accepted, ones that are refused, and the checks that refuse them.
OPERATIONS: dict[str, tuple[Act, dict[str, Act]]] = {
    "create_vm": (
        lambda p, w: p.create_vm(w.kvm, 0),
        {
            "vm-type-offered": lambda p, w: p.create_vm(w.kvm, 9),
            "fd-takes-this-ioctl": lambda p, w: p.create_vm(w.vm, 0),
        },
    ),
    "check_extension": (
        lambda p, w: p.check_extension(w.vm, 10),
        {
            "fd-takes-this-ioctl": lambda p, w: p.check_extension(w.gmem, 10),
            "descriptor-open": lambda p, w: p.check_extension(-1, 10),
        },
    ),
    "enable_cap": (
        lambda p, w: p.enable_cap(w.vm, 213, [128]),
        {
            "fd-takes-this-ioctl": lambda p, w: p.enable_cap(w.gmem, 213, []),
            "flags-zero": lambda p, w: p.enable_cap(w.vm, 213, [], 1),
            "capability-can-be-enabled": lambda p, w: p.enable_cap(w.vm, 9999, []),
            "quirks-known": lambda p, w: p.enable_cap(w.vm, 213, [1 << 63]),
        },
    ),
    "create_vcpu": (
        lambda p, w: p.create_vcpu(w.vm, 1),
        {
            "vcpu-id-free": lambda p, w: p.create_vcpu(w.vm, 0),
            "vcpu-id": lambda p, w: p.create_vcpu(w.vm, 4096),
        },
    ),
    "create_guest_memfd": (
        lambda p, w: p.create_guest_memfd(w.vm, P, 0),
        {"size-aligned": lambda p, w: p.create_guest_memfd(w.vm, P + 1, 0)},
    ),
    "set_user_memory_region": (
        lambda p, w: p.set_user_memory_region(w.vm, 1, 0, MIB, P, w.buffer),
        {
            "gpa-free": lambda p, w: p.set_user_memory_region(w.vm, 1, 0, P, P, w.buffer),
            "slot-exists": lambda p, w: p.set_user_memory_region(w.vm, 1, 0, 0, 0, 0),
            "only-gpa-and-dirty-log-change": lambda p, w: p.set_user_memory_region(w.vm, 0, 0, 0, P, w.buffer),
            "gpa-mappable": lambda p, w: p.set_user_memory_region(w.vm, 0, 0, 1 << 52, 2 * P, w.buffer),
        },
    ),
    "set_user_memory_region2": (
        lambda p, w: p.set_user_memory_region2(w.vm, 1, 4, MIB, P, w.buffer, w.gmem, 0),
        {
            "fd-open": lambda p, w: p.set_user_memory_region2(w.vm, 1, 4, MIB, P, w.buffer, 999, 0),
            "binding-in-file": lambda p, w: p.set_user_memory_region2(w.vm, 1, 4, MIB, 8 * P, 0, w.gmem, 0),
        },
    ),
    "set_memory_attributes": (
        lambda p, w: p.set_memory_attributes(w.vm, 0, P, 8, 0),
        {"attributes-supported": lambda p, w: p.set_memory_attributes(w.vm, 0, P, 1, 0)},
    ),
    "gmem_set_memory_attributes": (
        lambda p, w: raised(convert(p, w)),
        {
            "descriptor-open": lambda p, w: raised(p.gmem_set_memory_attributes(-1, 0, P, 0, 0).refused),
            "fd-takes-this-ioctl": lambda p, w: raised(p.gmem_set_memory_attributes(w.vm, 0, P, 0, 0).refused),
            "flags-zero": lambda p, w: raised(convert(p, w, flags=1)),
            "reserved-zero": lambda p, w: raised(convert(p, w, reserved=(1,))),
            "attributes-supported": lambda p, w: raised(convert(p, w, attributes=1)),
            "range-not-empty": lambda p, w: raised(convert(p, w, size=0)),
            "range-page-aligned": lambda p, w: raised(convert(p, w, offset=1)),
            "range-in-file": lambda p, w: raised(convert(p, w, size=5 * P)),
            "no-page-held": convert_what_is_held,
        },
    ),
    "pin": (lambda p, w: p.pin(w.buffer, P), {"pages-can-be-read": lambda p, w: p.pin(0, P)}),
    "unpin": (lambda p, w: p.close(p.pin(w.buffer, P)), {"descriptor-open": lambda p, w: p.close(-1)}),
    "fallocate": (
        lambda p, w: p.fallocate(w.gmem, KEEP, 0, P),
        {
            "mode-supported": lambda p, w: p.fallocate(w.gmem, 0, 0, P),
            "file-regular": lambda p, w: p.fallocate(w.vm, KEEP, 0, P),
        },
    ),
    "ftruncate": (
        lambda p, w: p.ftruncate(w.memfd, P),
        {
            "size-can-change": lambda p, w: p.ftruncate(w.gmem, P),
            "descriptor-open": lambda p, w: p.ftruncate(-1, P),
            "length-not-negative": lambda p, w: p.ftruncate(-1, -1),
        },
    ),
    "lseek": (
        lambda p, w: p.lseek(w.memfd, 0, 0),
        {
            "file-seekable": lambda p, w: p.lseek(w.gmem, 0, 0),
            "whence-known": lambda p, w: p.lseek(w.gmem, 0, 9),
            "offset-in-file": lambda p, w: p.lseek(w.memfd, -1, 0),
        },
    ),
    "read": (
        lambda p, w: p.read(w.memfd, 1),
        {
            "file-has-read": lambda p, w: p.read(w.gmem, 1),
            "file-has-data": lambda p, w: p.read(p.open_aux("pipe"), 1),
            "length-of-counter": lambda p, w: p.read(p.open_aux("eventfd"), 7),
        },
    ),
    "write": (
        lambda p, w: p.write(w.memfd, 1),
        {
            "file-has-write": lambda p, w: p.write(w.gmem, 1),
            "length-of-counter": lambda p, w: p.write(p.open_aux("eventfd"), 9),
        },
    ),
    "pread": (
        lambda p, w: p.pread(w.memfd, 1, 0),
        {
            "file-has-positions": lambda p, w: p.pread(w.gmem, 1, 0),
            "offset-not-negative": lambda p, w: p.pread(w.gmem, 1, -1),
        },
    ),
    "pwrite": (
        lambda p, w: p.pwrite(w.memfd, 1, 0),
        {"descriptor-open": lambda p, w: p.pwrite(-1, 1, 0)},
    ),
    "fsync": (lambda p, w: p.fsync(w.memfd), {"file-has-fsync": lambda p, w: p.fsync(w.gmem)}),
    "dup": (lambda p, w: p.dup(w.gmem), {"descriptor-open": lambda p, w: p.dup(-1)}),
    "close": (lambda p, w: p.close(w.gmem), {"descriptor-open": lambda p, w: p.close(-1)}),
    "reopen": (
        lambda p, w: p.reopen(w.memfd, 0),
        {
            "file-can-be-opened": lambda p, w: p.reopen(w.gmem, 0),
            "name-is-directory": lambda p, w: p.reopen(w.gmem, 0o200000),
            "name-is-no-link": lambda p, w: p.reopen(w.gmem, 0o400000),
            "name-is-new": lambda p, w: p.reopen(w.gmem, 0o300),
            "descriptor-open": lambda p, w: p.reopen(-1, 0),
        },
    ),
    "fstat": (lambda p, w: p.fstat(w.gmem), {"descriptor-open": lambda p, w: p.fstat(-1)}),
    "mmap": (
        lambda p, w: p.mmap(w.memfd, P, RW, MAP_SHARED, 0),
        {
            "gmem-mmap-flag": lambda p, w: p.mmap(w.gmem, P, RW, MAP_SHARED, 0),
            "offset-page-aligned": lambda p, w: p.mmap(-1, P, RW, MAP_SHARED, 1),
            "length-not-zero": lambda p, w: p.mmap(-1, 0, RW, MAP_PRIVATE | MAP_ANONYMOUS, 0),
            "address-space-has-room": lambda p, w: p.mmap(-1, 1 << 50, RW, MAP_PRIVATE | MAP_ANONYMOUS, 0),
        },
    ),
    "munmap": (
        lambda p, w: p.munmap(w.buffer, P),
        {
            "range-aligned": lambda p, w: p.munmap(w.buffer, 0),
            "range-in-user-space": lambda p, w: p.munmap(1 << 60, P),
        },
    ),
    "mprotect": (
        lambda p, w: p.mprotect(w.buffer, P, PROT_READ),
        {
            "range-mapped": lambda p, w: p.mprotect(w.buffer, 64 * P, PROT_READ),
            "protection-known": lambda p, w: p.mprotect(w.buffer, P, 16),
            "mapping-grows": lambda p, w: p.mprotect(w.buffer, P, 0x01000000),
            "range-no-wrap": lambda p, w: p.mprotect(w.buffer, (1 << 64) - P, PROT_READ),
            "mapping-may-exec": lambda p, w: p.mprotect(
                p.mmap(p.create_guest_memfd(w.vm, P, 1), P, RW, MAP_SHARED, 0), P, 4
            ),
        },
    ),
    "madvise": (
        lambda p, w: p.madvise(w.buffer, P, 4),
        {
            "advice-known": lambda p, w: p.madvise(w.buffer, P, 7),
            "advice-fits-mapping": lambda p, w: p.madvise(w.buffer, P, 9),
            "range-mapped": lambda p, w: p.madvise(w.buffer, 64 * P, 4),
            "mapping-permits": lambda p, w: p.madvise(p.mmap(w.memfd, P, PROT_READ, MAP_SHARED, 0), P, 23),
            "page-can-be-had": lambda p, w: p.madvise(p.mmap(w.memfd, P, RW, MAP_SHARED, 0), P, 22),
            "mapping-shared-writable": lambda p, w: p.madvise(p.mmap(w.memfd, P, RW, MAP_PRIVATE, 0), P, 9),
            "file-has-holes": lambda p, w: p.madvise(p.mmap(w.vcpu, P, RW, MAP_SHARED, 0), P, 9),
        },
    ),
    "pre_fault": (
        lambda p, w: p.pre_fault_memory(w.vcpu, 0, P, 0),
        {
            "range-valid": lambda p, w: raised(p.pre_fault_memory(w.vcpu, 0, 0, 0).refused),
            "gpa-has-memory": lambda p, w: raised(p.pre_fault_memory(w.vcpu, MIB, P, 0).refused),
            "memory-fault": pre_fault_of_private_memory_without_a_file,
            "host-error": pre_fault_of_unmapped_host_memory,
            "fd-takes-this-ioctl": lambda p, w: raised(p.pre_fault_memory(w.vm, 0, P, 0).refused),
        },
    ),
    "run_touch": (
        lambda p, w: p.run_touch(w.vcpu, None, []),
        {"descriptor-open": lambda p, w: p.run_touch(-1, None, [])},
    ),
    "mapped_pages": (lambda p, w: p.mapped_pages(w.vm), {"fd-takes-this-ioctl": lambda p, w: p.mapped_pages(w.gmem)}),
    "poison": (
        lambda p, w: p.poison(w.gmem, 0),
        {
            "offset-in-file": lambda p, w: p.poison(w.gmem, 4 * P),
            "fd-is-guest-memfd": lambda p, w: p.poison(w.memfd, 0),
        },
    ),
    "memfd_restricted": (
        lambda p, w: p.memfd_restricted(0),
        {
            "flags-supported": lambda p, w: p.memfd_restricted(1),
            "page-size-known": lambda p, w: p.memfd_restricted(63 << 26),
        },
    ),
    "set_shmem_enabled": (
        lambda p, w: p.set_shmem_enabled("always", 2 * MIB),
        {
            "policy-known": lambda p, w: p.set_shmem_enabled("sometimes", 2 * MIB),  # type: ignore[arg-type]
            "page-size-known": lambda p, w: p.set_shmem_enabled("always", 3 * P),
        },
    ),
}
"""All but open_aux, which asks nothing, and the accesses of the process, which end in signals."""

REFUSED = [(op, check) for op, (_, refused) in OPERATIONS.items() for check in refused]


def raised(refused: KvmError | None) -> None:
    """The refusal that KVM_PRE_FAULT_MEMORY hands back, as an exception like the others."""
    if refused is not None:
        raise refused


@pytest.fixture
def op() -> str:
    return ""


@pytest.fixture
def world(op: str) -> Iterator[World]:
    with Process(kernel_of(op)) as process:
        yield World(process)


def checks(walked: list[Observation]) -> list[Observation]:
    return [seen for seen in walked if seen.passed is not None]


def test_the_table_has_every_operation_of_the_vocabulary() -> None:
    tags = {operation.__struct_config__.tag for operation in vocabulary.OPERATIONS}

    assert tags - OPERATIONS.keys() == {"open_aux", "host_read", "host_write"}
    assert OPERATIONS.keys() - tags == set()


@pytest.mark.parametrize("op", OPERATIONS)
def test_an_accepted_operation_shows_every_question_and_all_passed(world: World, op: str) -> None:
    accepted, _ = OPERATIONS[op]

    with observing() as walked:
        accepted(world.process, world)

    asked = checks(walked)
    assert asked
    assert all(seen.passed for seen in asked)
    assert all(seen.rule and seen.source for seen in asked)


@pytest.mark.parametrize(("op", "check"), REFUSED)
def test_a_refused_operation_shows_the_check_that_refused_last(world: World, op: str, check: str) -> None:
    refuse = OPERATIONS[op][1][check]

    with observing() as walked, pytest.raises(KvmError) as refused:
        refuse(world.process, world)

    *before, last = checks(walked)
    assert (refused.value.check, last.name, last.passed) == (check, check, False)
    assert (last.errno, last.text in refused.value.reason) == (refused.value.errno, True)
    assert all(seen.passed for seen in before)


@pytest.mark.parametrize(("op", "check"), REFUSED)
def test_who_looks_on_changes_no_answer(world: World, op: str, check: str) -> None:
    with pytest.raises(KvmError) as unobserved:
        OPERATIONS[op][1][check](world.process, world)
    with Process(kernel_of(op)) as process, observing(), pytest.raises(KvmError) as observed:
        OPERATIONS[op][1][check](process, World(process))

    assert (unobserved.value.errno, unobserved.value.check) == (observed.value.errno, observed.value.check)


def test_the_accesses_of_the_process_say_what_they_met(world: World) -> None:
    with observing() as walked, suppress(HostSignal):
        world.process.host_read(world.buffer, 8)
        world.process.host_write(world.buffer + 64 * P, 8, 0)

    there, gone = [seen.text for seen in walked if seen.name == "host-access"]
    assert "present" in there
    assert gone.startswith("SIGSEGV: nothing is mapped")


def test_an_allocation_that_the_host_has_no_page_for_shows_what_it_got_before() -> None:
    with Process(NEXT, Machine(pools=((0, 2),))) as process:
        vm = process.create_vm(process.open_kvm(), 1)
        gmem = process.create_guest_memfd(vm, 4 * P, 0)
        with observing() as walked, pytest.raises(KvmError):
            process.fallocate(gmem, KEEP, 0, 4 * P)

    assert [seen.passed for seen in walked if seen.name == "host-has-page"] == [True, False]


@pytest.mark.parametrize("path", sorted(MODEL.glob("*.py")), ids=lambda path: path.stem)
def test_only_checks_refuse(path: Path) -> None:
    """KvmError is made in one place, so that no refusal goes unseen."""
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    made = [node.lineno for node in calls if isinstance(node.func, ast.Name) and node.func.id == "KvmError"]

    assert len(made) == (path.stem == "checks"), f"{path.name}:{made}"


def test_a_check_is_named_once_in_its_operation(world: World) -> None:
    """``explain`` has one row for each name."""
    for op, (accepted, _) in OPERATIONS.items():
        with Process(kernel_of(op)) as process, observing() as walked:
            world = World(process)
            walked.clear()
            accepted(process, world)
        questions = {(seen.name, seen.rule) for seen in checks(walked)}
        assert len({name for name, _ in questions}) == len(questions)
