"""Running recorded operations: handles, buffers and mappings become descriptors and addresses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from helpers import P
from recordings import gmem, line, touches, vcpu, vm

from guestmem.model.process import Process
from guestmem.model.profiles import V7_2
from guestmem.recordings.handles import BUFFERS
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Answered, NotRun, Outcome, UnknownName, reason
from guestmem.recordings.runner import Runner
from guestmem.recordings.vocabulary import Begin, Line

Json = dict[str, Any]


@pytest.fixture
def runner() -> Iterator[Runner]:
    with Process(V7_2) as process:
        yield Runner(process)


def outcome_of(runner: Runner, *lines: Json) -> Outcome:
    """Run lines; the last one's outcome."""
    for each in lines:
        operation = msgspec.json.decode(json.dumps(each), type=Line)
        assert not isinstance(operation, Begin)
        outcome = runner.run(operation)
    return outcome


def run(runner: Runner, *lines: Json) -> Any:
    """Run lines; the last one's operation, as it was answered."""
    outcome = outcome_of(runner, *lines)
    assert isinstance(outcome, Answered), outcome
    return outcome.operation


def ended(operation: Operation) -> Any:
    """The errno if it was refused, else the result."""
    return operation.errno or operation.result


# -- handles -----------------------------------------------------------------------------------------------------------


def test_kvm_is_open_and_a_new_object_is_named_by_its_handle(runner: Runner) -> None:
    assert ended(run(runner, vm())) == "vm0"
    assert ended(run(runner, line("check_extension", on="kvm", cap=235))) == 3
    assert ended(run(runner, line("check_extension", on="vm0", cap=234))) == 1


def test_the_handle_of_a_failed_operation_stands_for_minus_1_from_then_on(runner: Runner) -> None:
    run(runner, vm(), gmem())

    assert ended(run(runner, line("create_guest_memfd", vm="vm0", size=1, flags=0, out="gm0"))) == "EINVAL"
    assert runner.handles.fds["gm0"] == -1
    assert ended(run(runner, line("fstat", fd="gm0"))) == "EBADF"


def test_a_closed_handle_stays_closed_whatever_is_opened_next(runner: Runner) -> None:
    run(runner, vm(), gmem(), line("close", fd="gm0"), gmem(out="gm1"))

    assert ended(run(runner, line("fstat", fd="gm0"))) == "EBADF"
    assert ended(run(runner, line("close", fd="gm0"))) == "EBADF"
    assert ended(run(runner, line("fstat", fd="gm1"))) == 0


@pytest.mark.parametrize("number", [-1, 9999, 12345])
def test_a_number_stands_for_itself_and_these_are_never_open(runner: Runner, number: int) -> None:
    assert ended(run(runner, line("fsync", fd=number))) == "EBADF"


def test_number_0_is_dev_null(runner: Runner) -> None:
    assert ended(run(runner, line("read", fd=0, len=8))) == 0
    assert ended(run(runner, line("write", fd=0, len=8))) == 8


def test_a_vm_operation_may_be_issued_on_the_wrong_kind_of_object(runner: Runner) -> None:
    run(runner, vm(), gmem(), vcpu())

    assert ended(run(runner, line("create_vcpu", vm="gm0", id=0, out="x"))) == "ENOTTY"
    assert ended(run(runner, line("create_vm", type=0, out="x", on="cpu0"))) == "EINVAL"


@pytest.mark.parametrize(
    "operation",
    [
        line("close", fd="nobody"),
        line("host_read", map="nobody", off=0, size=8),
        line("host_read", buf="D", off=0, size=8),
        line("host_read", off=0, size=8),
        line("munmap", map="nobody"),
        line("madvise", map="nobody", advice=0),
    ],
    ids=lambda operation: json.dumps(operation)[:50],
)
def test_what_nothing_made_cannot_be_used(runner: Runner, operation: Json) -> None:
    assert isinstance(outcome_of(runner, operation), UnknownName)


# -- addresses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("A", None, None),
        ("B", None, None),
        ("C", None, None),
        ("RO", None, "SIGSEGV"),
        ("NONE", "SIGSEGV", "SIGSEGV"),
    ],
)
def test_every_buffer_has_64_mib_two_aligned_and_its_protection(
    runner: Runner, name: str, read: str | None, write: str | None
) -> None:
    last = (64 << 20) - 8

    assert run(runner, line("host_read", buf=name, off=last, size=8)).signal == read
    assert run(runner, line("host_write", buf=name, off=last, size=8, value=5)).signal == write
    assert runner.handles.buffers[name] % (2 << 20) == 0
    assert run(runner, line("host_read", buf=name, off=last, size=8)).result == (None if read else 0 if write else 5)


def test_the_buffers_are_apart_from_one_another(runner: Runner) -> None:
    for value, name in enumerate(BUFFERS, 1):
        run(runner, line("host_write", buf=name, off=0, size=8, value=value))

    assert [run(runner, line("host_read", buf=name, off=0, size=8)).result for name in "ABC"] == [1, 2, 3]


@pytest.mark.parametrize("where", [{"buf": "A", "off": 2 * P}, {"abs": 0}])
def test_a_userspace_address_is_a_place_in_a_buffer_or_a_number(runner: Runner, where: Json) -> None:
    run(runner, vm(), vcpu(), line("host_write", buf="A", off=2 * P, size=8, value=5))
    slot = line("set_user_memory_region", vm="vm0", slot=0, flags=0, gpa=0, size=P, userspace_addr=where)

    assert ended(run(runner, slot)) == 0
    exits = run(runner, touches(0, 0)).exits
    assert exits is not None
    assert exits[0][0].exit == ("done" if "buf" in where else "unknown")


def test_a_userspace_address_may_be_a_mapping(runner: Runner) -> None:
    run(
        runner,
        vm(type=0),
        gmem(flags=3),
        line("mmap", fd="gm0", length=2 * P, prot=3, flags=1, offset=0, out="map0"),
        line("host_write", map="map0", off=P, size=8, value=5),
        vcpu(),
    )
    where = {"map": "map0", "off": P}
    run(runner, line("set_user_memory_region", vm="vm0", slot=0, flags=0, gpa=0, size=P, userspace_addr=where))

    exits = run(runner, touches(0, 0)).exits
    assert exits is not None
    assert exits[0][0].value == 5


def test_operations_on_a_mapping_that_failed_or_is_gone_are_not_run_which_is_an_outcome(runner: Runner) -> None:
    run(runner, vm(), gmem())
    mapped = line("mmap", fd="gm0", length=P, prot=3, flags=1, offset=0, out="map0")
    use = line("host_read", map="map0", off=0, size=8)
    assert ended(run(runner, mapped)) == "ENODEV"
    missing = outcome_of(runner, use)
    assert isinstance(missing, NotRun)
    assert "map0" in missing.why
    for other in (
        line("munmap", map="map0"),
        line("mprotect", map="map0", prot=0),
        line("madvise", map="map0", advice=4),
    ):
        assert isinstance(outcome_of(runner, other), NotRun)

    run(runner, vm(type=0, out="vm1"), gmem(flags=3, vm="vm1", out="gm1"))
    assert ended(run(runner, {**mapped, "fd": "gm1"})) == "map0"
    assert run(runner, use).result == 0
    assert ended(run(runner, line("munmap", map="map0"))) == 0
    assert isinstance(outcome_of(runner, use), NotRun)


def test_unmapping_a_part_leaves_the_rest_usable(runner: Runner) -> None:
    run(
        runner,
        vm(type=0),
        gmem(flags=3),
        line("mmap", fd="gm0", length=2 * P, prot=3, flags=1, offset=0, out="map0"),
        line("munmap", map="map0", off=0, length=P),
    )

    assert run(runner, line("host_read", map="map0", off=0, size=8)).signal == "SIGSEGV"
    assert run(runner, line("host_read", map="map0", off=P, size=8)).result == 0


def test_calls_on_a_mapping_are_made_at_their_offset_and_on_the_whole_without_a_length(runner: Runner) -> None:
    run(
        runner,
        vm(type=0),
        gmem(flags=3),
        line("mmap", fd="gm0", length=4 * P, prot=3, flags=1, offset=0, out="map0"),
    )

    def pages() -> list[Any]:
        reads = [run(runner, line("host_read", map="map0", off=page * P, size=8)) for page in range(4)]
        return [outcome.signal or outcome.result for outcome in reads]

    for page in range(4):
        run(runner, line("host_write", map="map0", off=page * P, size=8, value=page + 1))
    run(runner, line("madvise", map="map0", off=P, length=P, advice=9))
    assert pages() == [1, 0, 3, 4]
    run(runner, line("mprotect", map="map0", off=2 * P, length=P, prot=0))
    assert pages() == [1, 0, "SIGSEGV", 4]
    run(runner, line("munmap", map="map0", off=3 * P, length=P))
    assert pages() == [1, 0, "SIGSEGV", "SIGSEGV"]
    run(runner, line("munmap", map="map0", off=P))
    assert ended(run(runner, line("madvise", map="map0", advice=0))) == "ENOMEM"


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_fstat_of_a_guest_memfd_shows_what_recorders_wrote(runner: Runner) -> None:
    run(runner, vm(), gmem())

    found = run(runner, line("fstat", fd="gm0"))
    assert (found.st_size, found.st_blocks, found.st_blksize) == (0x4000, 0, P)
    assert (found.st_mode, found.st_nlink) == ("0o100600", 1)
    assert run(runner, line("fstat", fd="vm0")).st_size is None


def test_pre_fault_tells_what_was_written_back_also_when_it_failed(runner: Runner) -> None:
    run(runner, vm(), vcpu())

    outcome = run(runner, line("pre_fault", vcpu="cpu0", gpa=P, size=2 * P, flags=0))

    assert (ended(outcome), outcome.gpa_out, outcome.size_out) == ("ENOENT", P, 2 * P)


def test_a_refusal_tells_the_check_and_its_values(runner: Runner) -> None:
    run(runner, vm())

    outcome = outcome_of(runner, line("create_guest_memfd", vm="vm0", size=1, flags=0, out="gm0"))

    assert isinstance(outcome, Answered)
    assert outcome.check == "size-aligned"
    assert "size=0x1" in outcome.reason


def test_each_touch_has_its_own_exits(runner: Runner) -> None:
    run(runner, vm(), vcpu())

    exits = run(runner, touches(0, 0, P)).exits

    assert exits is not None
    assert [[exit.exit for exit in each] for each in exits] == [["mmio", "done"]] * 2


def test_running_what_is_no_vcpu_is_a_bare_run(runner: Runner) -> None:
    run(runner, vm())

    outcome = run(runner, touches(0, 0, vcpu="vm0"))

    assert (outcome.errno, outcome.exits) == ("ENOTTY", None)


def test_one_pad_word_fills_them_all_or_a_list_is_taken_as_it_is(runner: Runner) -> None:
    run(runner, vm())
    slot = line(
        "set_user_memory_region2",
        vm="vm0",
        slot=0,
        flags=0,
        gpa=0,
        size=P,
        userspace_addr={"abs": 0},
        guest_memfd=-1,
        guest_memfd_offset=0,
    )

    assert ended(run(runner, {**slot, "pad1": 0xFFFFFFFF, "pad2": (1 << 64) - 1})) == 0
    assert ended(run(runner, {**slot, "pad2": [1] * 14})) == 0


def test_guestmems_own_operations_reach_the_host(runner: Runner) -> None:
    run(runner, vm(), gmem(), line("fallocate", fd="gm0", mode=1, offset=0, len=P))

    assert ended(run(runner, line("poison", fd="gm0", offset=0))) == 0
    assert ended(run(runner, line("poison", fd="gm0", offset=0x4000))) == "EINVAL"
    assert ended(run(runner, line("set_shmem_enabled", policy="always", page_size=3 * P))) == "EINVAL"


# -- what is mapped ----------------------------------------------------------------------------------------------------


def boot_slot(i: int) -> Json:
    where: Json = {"vm": "vm0", "slot": 1000, "gpa": 0xD0000000, "size": 0x10000, "userspace_addr": {"buf": "boot:vm0"}}
    return line("set_user_memory_region", i, flags=0, **where)


def slot(size: int) -> Json:
    where: Json = {"vm": "vm0", "slot": 0, "gpa": 0, "userspace_addr": {"buf": "A"}}
    return line("set_user_memory_region", flags=0, size=size, **where)


def test_what_is_mapped_is_told_by_page_size_right_after_a_guest_ran(runner: Runner) -> None:
    run(runner, vm(), boot_slot(0), vcpu(), slot(4 * P))

    assert run(runner, touches(0, 0), line("mapped_pages", vm="vm0")).pages == {"4096": 1}
    assert run(runner, touches(0, 0, P), line("mapped_pages", vm="vm0")).pages == {"4096": 2}


@pytest.mark.parametrize("between", [line("mapped_pages", vm="vm0"), slot(0), line("fsync", fd=-1)])
def test_anything_in_between_makes_it_unknown(runner: Runner, between: Json) -> None:
    run(runner, vm(), boot_slot(0), vcpu(), slot(4 * P), touches(0, 0))

    assert "right after" in reason(outcome_of(runner, between, line("mapped_pages", vm="vm0")))


def test_the_run_of_another_vm_tells_nothing_of_this_one(runner: Runner) -> None:
    run(runner, vm(), boot_slot(0), vcpu(), vm(out="vm1"), touches(0, 0))

    assert "right after" in reason(outcome_of(runner, line("mapped_pages", vm="vm1")))


@pytest.mark.parametrize(("number", "errno"), [(-1, "EBADF"), (0, "ENOTTY"), ("kvm", "EINVAL")])
def test_what_is_no_vm_has_nothing_mapped(runner: Runner, number: int | str, errno: str) -> None:
    assert ended(run(runner, line("mapped_pages", vm=number))) == errno


def test_the_backends_own_guest_code_is_not_counted(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    run(runner, vm(), boot_slot(0), vcpu(), slot(4 * P), touches(0, 0))
    monkeypatch.setattr(Process, "boot_pages", 6)
    monkeypatch.setattr(Process, "mapped_pages", lambda self, fd: {P: 6, 2 << 20: 1})

    assert run(runner, line("mapped_pages", vm="vm0")).pages == {str(2 << 20): 1}
