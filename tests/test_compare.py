"""Comparing an outcome with what was recorded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from msgspec import UNSET
from recordings import answered

from guestmem.recordings.calls import Fstat, Fsync, HostRead
from guestmem.recordings.compare import Verdict, compare
from guestmem.recordings.ioctls import CheckExtension, CreateVm, PreFault, RecordedExit, RecordedTouch, RunTouch
from guestmem.recordings.operation import Operation
from guestmem.recordings.outcome import Outcome

DONE = RecordedExit("done", value=0)


Got = Callable[[Operation], Outcome]


def got(*values: Any, **more: Any) -> Got:
    """What a kernel answered, whatever was asked."""
    return lambda operation: answered(operation, *values, **more)


def only(operation: Operation, got: Got) -> Verdict:
    [verdict] = compare(operation, got(operation))
    return verdict


def create(**recorded: Any) -> CreateVm:
    return CreateVm(seq="s", i=0, type=1, out="vm0", **recorded)


@pytest.mark.parametrize(
    ("recorded", "got", "agreed"),
    [
        ({"result": "vm0", "errno": None}, got("vm0"), True),
        ({"result": None, "errno": "EINVAL"}, got(None, "EINVAL"), True),
        ({"result": "vm0", "errno": None}, got("vm1"), False),
        ({"result": "vm0", "errno": None}, got(None, "EINVAL"), False),
        ({"result": None, "errno": "EINVAL"}, got(None, "EEXIST"), False),
        ({"result": None, "errno": "EINVAL"}, got("vm0"), False),
        ({"result": None, "errno": None}, got("vm0"), False),
    ],
)
def test_result_and_errno_must_both_be_as_recorded(recorded: dict[str, Any], got: Got, agreed: bool) -> None:
    verdict = only(create(**recorded), got)

    assert verdict.agreed is agreed
    assert verdict.recorded == recorded


def test_a_result_of_0_is_told_apart_from_none() -> None:
    recorded = Fsync(seq="s", i=0, fd=1, result=0, errno=None)

    assert only(recorded, got(0)).agreed
    assert not only(recorded, got(None)).agreed


def test_what_was_never_run_agrees_with_anything_and_says_that_nothing_was_recorded() -> None:
    assert create().errno is UNSET
    for outcome in (got("vm0"), got(None, "EINVAL")):
        verdict = only(create(), outcome)
        assert (verdict.agreed, verdict.recorded) == (True, None)


STAT: dict[str, Any] = {"st_size": 4096, "st_blocks": 0, "st_blksize": 4096, "st_mode": "0o100600", "st_nlink": 1}


@pytest.mark.parametrize("field", STAT)
def test_every_field_of_fstat_counts(field: str) -> None:
    operation = Fstat(seq="s", i=0, fd="gm0", result=0, errno=None, **STAT)

    assert only(operation, got(0, **STAT)).agreed
    assert not only(operation, got(0, **{**STAT, field: "other"})).agreed


def test_fstat_of_another_file_has_nothing_but_its_result() -> None:
    assert only(Fstat(seq="s", i=0, fd="kvm", result=0, errno=None), got(0)).agreed


@pytest.mark.parametrize("field", ["gpa_out", "size_out"])
def test_what_pre_fault_wrote_back_counts_also_when_it_failed(field: str) -> None:
    operation = PreFault(seq="s", i=0, vcpu="c", gpa=0, size=8192, flags=0, errno="ENOENT", gpa_out=4096, size_out=4096)
    observed = {"gpa_out": 4096, "size_out": 4096}

    assert only(operation, got(None, "ENOENT", **observed)).agreed
    assert not only(operation, got(None, "ENOENT", **{**observed, field: 0})).agreed


@pytest.mark.parametrize(
    ("recorded", "got", "agreed"),
    [
        ({"result": 5, "signal": None}, got(5, signal=None), True),
        ({"result": None, "signal": "SIGBUS"}, got(None, signal="SIGBUS"), True),
        ({"result": None, "signal": "SIGBUS"}, got(None, signal="SIGSEGV"), False),
        ({"result": 5, "signal": None}, got(None, signal="SIGBUS"), False),
        ({"result": 5, "signal": None}, got(6, signal=None), False),
    ],
)
def test_the_signal_of_a_host_access_counts(recorded: dict[str, Any], got: Got, agreed: bool) -> None:
    operation = HostRead(seq="s", i=0, buf="A", off=0, size=8, errno=None, **recorded)

    assert only(operation, got).agreed is agreed


# -- touches -----------------------------------------------------------------------------------------------------------


def touched(*exits: list[RecordedExit], count: int = 1, **recorded: Any) -> RunTouch:
    return RunTouch(
        seq="s",
        i=0,
        vm="vm0",
        vcpu="cpu0",
        boot_gpa=0,
        touches=[RecordedTouch(gpa=4096 * index, rw="r", size=8) for index in range(count)],
        exits=list(exits) or None,
        **recorded,
    )


EXIT: dict[str, Any] = {"errno": "EFAULT", "flags": 8, "gpa": 4096, "size": 4096}


@pytest.mark.parametrize("field", EXIT)
def test_every_field_of_an_exit_counts(field: str) -> None:
    operation = touched([RecordedExit("memory_fault", **EXIT)], result=0, errno=None)
    same = RecordedExit("memory_fault", **EXIT)
    other = RecordedExit("memory_fault", **{**EXIT, field: "EHWPOISON" if field == "errno" else 0})

    assert only(operation, got(0, exits=[[same]])).agreed
    assert not only(operation, got(0, exits=[[other]])).agreed


@pytest.mark.parametrize(
    "exits",
    [
        [[RecordedExit("mmio", gpa=0, len=8, is_write=0), DONE]],
        [[DONE, DONE]],
        [[]],
        [[RecordedExit("done", value=1)]],
        [[RecordedExit("done")]],
    ],
)
def test_kind_number_and_value_of_the_exits_count(exits: list[list[RecordedExit]]) -> None:
    operation = touched([RecordedExit("done", value=0)], result=0, errno=None)

    assert not only(operation, got(0, exits=exits)).agreed


def test_each_touch_is_an_operation_of_its_own() -> None:
    right, wrong = [RecordedExit("done", value=0)], [RecordedExit("done", value=9)]
    operation = touched(right, wrong, right, count=3, result=0, errno=None)

    verdicts = list(compare(operation, answered(operation, 0, exits=[[DONE]] * 3)))

    assert [(verdict.touch, verdict.agreed) for verdict in verdicts] == [(0, True), (1, False), (2, True)]
    assert verdicts[1].recorded == [{"exit": "done", "value": 9}]
    assert verdicts[1].got == [{"exit": "done", "value": 0}]


def test_a_bare_run_that_failed_is_one_operation_with_its_errno() -> None:
    assert only(touched(errno="ENOTTY"), got(None, "ENOTTY")).agreed
    assert not only(touched(errno="ENOTTY"), got(None, "EBADF")).agreed
    assert not only(touched(errno="ENOTTY"), got(0, exits=[[DONE]])).agreed


def test_fewer_recorded_exits_than_touches_is_a_difference_not_a_crash() -> None:
    operation = touched([RecordedExit("done", value=0)], count=2, result=0, errno=None)

    assert [verdict.agreed for verdict in compare(operation, answered(operation, 0, exits=[[DONE], [DONE]]))] == [
        True,
        False,
    ]


def test_touches_that_were_never_run_agree_with_anything() -> None:
    verdicts = list(compare(touched(count=2), answered(touched(count=2), 0, exits=[[DONE], [DONE]])))

    assert [(verdict.agreed, verdict.recorded) for verdict in verdicts] == [(True, None)] * 2


# -- known divergences -------------------------------------------------------------------------------------------------


def test_a_difference_that_is_listed_is_known_and_agreement_never_is() -> None:
    operation = CheckExtension(seq="s", i=0, on="kvm", cap=77, result=5, errno=None)

    known, agreed = only(operation, got(0)), only(operation, got(5))

    assert known.divergence is not None
    assert known.divergence.name == "other-capabilities"
    assert (known.agreed, agreed.agreed, agreed.divergence) == (False, True, None)


def test_the_deciding_check_is_handed_on() -> None:
    verdict = only(create(result="vm0", errno=None), got(None, "EINVAL", check="vm-type-offered", reason="type 1"))

    assert (verdict.check, verdict.reason) == ("vm-type-offered", "type 1")
