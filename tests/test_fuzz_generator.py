"""Random sequences: the same on every machine, aimed well, and never at what would ruin the comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

import msgspec

from guestmem.fuzz.draft import Scope
from guestmem.fuzz.generator import THEMES, sequence
from guestmem.harness import BOOT_GPA, BOOT_SIZE
from guestmem.model.process import Process
from guestmem.model.profiles import V6_12
from guestmem.recordings.calls import Dup
from guestmem.recordings.ioctls import (
    CreateVcpu,
    MappedPages,
    RunTouch,
    SetMemoryAttributes,
    SetUserMemoryRegion,
    SetUserMemoryRegion2,
)
from guestmem.recordings.operation import Handle, Operation
from guestmem.recordings.outcome import Answered
from guestmem.recordings.play import play
from guestmem.recordings.vocabulary import OPERATIONS, Line
from guestmem.units import U64

EVERYTHING = Scope((0, 1), attributes=True, two_dimensional_paging=True, creation_flags=((1, 0),))  # as 6.12 has it
SEEDS = range(400)
DOORBELL = BOOT_GPA + BOOT_SIZE  # the page after the guest's code: a hole, which ends every touch


def operations(scope: Scope = EVERYTHING) -> Iterator[Operation]:
    for seed in SEEDS:
        yield from sequence(seed, scope)


def test_a_seed_gives_the_same_sequence_every_time() -> None:
    for seed in range(20):
        assert sequence(seed, EVERYTHING) == sequence(seed, EVERYTHING)


def test_other_seeds_give_other_sequences() -> None:
    assert len({msgspec.json.encode(sequence(seed, EVERYTHING)) for seed in SEEDS}) == len(SEEDS)


def test_every_sequence_can_be_written_as_a_recording_and_read_back() -> None:
    decoder = msgspec.json.Decoder(Line)
    for operation in operations():
        assert decoder.decode(msgspec.json.encode(operation)) == operation


def test_the_whole_vocabulary_that_two_kernels_can_be_compared_on_is_used() -> None:
    used = {type(operation) for operation in operations()}

    left_out = set(OPERATIONS) - used
    only_on_a_model = {"MemfdRestricted", "Poison", "SetShmemEnabled"}
    on_no_kernel_yet = {"GmemSetMemoryAttributes"}
    assert {kind.__name__ for kind in left_out} == only_on_a_model | on_no_kernel_yet


def test_a_kernel_without_attributes_is_asked_for_them_less_but_still_asked() -> None:
    without, with_them = (
        sum(isinstance(each, SetMemoryAttributes) for each in operations(scope)) for scope in (Scope(), EVERYTHING)
    )

    assert 0 < without < with_them


def test_the_page_that_ends_every_touch_stays_a_shared_hole() -> None:
    for operation in operations():
        match operation:
            case SetMemoryAttributes() if operation.attributes and operation.address + operation.size < U64:
                assert not operation.address <= DOORBELL < operation.address + operation.size
            case SetUserMemoryRegion() | SetUserMemoryRegion2() if operation.gpa + operation.size < U64:
                assert not operation.gpa <= DOORBELL < operation.gpa + operation.size


def test_guests_never_touch_their_own_code() -> None:
    for operation in operations():
        if isinstance(operation, RunTouch):
            for touch in operation.touches:
                assert not BOOT_GPA <= touch.gpa < DOORBELL + 4096


def test_most_operations_hit_something_rather_than_nothing() -> None:
    """A generator that is refused everything would compare only the refusals."""
    outcomes: Counter[bool] = Counter()
    for seed in range(60):
        for outcome in play(Process(V6_12), sequence(seed, EVERYTHING), None):
            outcomes[isinstance(outcome, Answered) and outcome.operation.errno is None] += 1

    assert outcomes[True] > outcomes[False]


def test_a_theme_names_only_steps_that_there_are() -> None:
    for weights in THEMES.values():
        assert weights
        assert all(weight > 0 for weight in weights.values())


def test_what_is_mapped_is_asked_after_accesses_where_a_kernel_can_tell() -> None:
    shadow = Scope(creation_flags=((0, 3),))
    assert not any(isinstance(each, MappedPages) for each in operations(shadow))
    for seed in SEEDS:
        made = sequence(seed, EVERYTHING)
        for before, each in pairwise(made):
            if isinstance(each, MappedPages):
                assert isinstance(before, RunTouch)
                assert before.vm == each.vm
    asked, accesses = (sum(isinstance(each, kind) for each in operations()) for kind in (MappedPages, RunTouch))
    assert accesses / 2 < asked < accesses


def test_an_access_names_the_vm_of_its_vcpu() -> None:
    """Also through a duplicate of it: the boot memory is that of the VM that is named. Seed 910201133 once did not."""
    for seed in (*SEEDS, 910201133):
        for scope in (EVERYTHING, Scope(creation_flags=((0, 3),))):
            vms: dict[Handle, Handle] = {}
            for operation in sequence(seed, scope):
                match operation:
                    case CreateVcpu():
                        vms[operation.out] = operation.vm
                    case Dup() if operation.fd in vms:
                        vms[operation.out] = vms[operation.fd]
                    case RunTouch() if operation.vcpu in vms:
                        assert operation.vm == vms[operation.vcpu], seed
