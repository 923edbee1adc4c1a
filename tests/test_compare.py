"""Comparing an outcome with what was recorded."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import UNSET

from guestmem.backend import Exit
from guestmem.recordings import vocabulary as v
from guestmem.recordings.compare import Verdict, compare
from guestmem.recordings.runner import Outcome

DONE = Exit("done", value=0)


def only(operation: v.Operation, outcome: Outcome) -> Verdict:
    [verdict] = compare(operation, outcome)
    return verdict


def create(**recorded: Any) -> v.CreateVm:
    return v.CreateVm(seq="s", i=0, type=1, out="vm0", **recorded)


@pytest.mark.parametrize(
    ("recorded", "got", "agreed"),
    [
        ({"result": "vm0", "errno": None}, Outcome("vm0"), True),
        ({"result": None, "errno": "EINVAL"}, Outcome(None, "EINVAL"), True),
        ({"result": "vm0", "errno": None}, Outcome("vm1"), False),
        ({"result": "vm0", "errno": None}, Outcome(None, "EINVAL"), False),
        ({"result": None, "errno": "EINVAL"}, Outcome(None, "EEXIST"), False),
        ({"result": None, "errno": "EINVAL"}, Outcome("vm0"), False),
        ({"result": None, "errno": None}, Outcome("vm0"), False),
    ],
)
def test_result_and_errno_must_both_be_as_recorded(recorded: dict[str, Any], got: Outcome, agreed: bool) -> None:
    verdict = only(create(**recorded), got)

    assert verdict.agreed is agreed
    assert verdict.recorded == recorded


def test_a_result_of_0_is_told_apart_from_none() -> None:
    recorded = v.Fsync(seq="s", i=0, fd=1, result=0, errno=None)

    assert only(recorded, Outcome(0)).agreed
    assert not only(recorded, Outcome(None)).agreed


def test_what_was_never_run_agrees_with_anything_and_says_that_nothing_was_recorded() -> None:
    assert create().errno is UNSET
    for outcome in (Outcome("vm0"), Outcome(None, "EINVAL")):
        verdict = only(create(), outcome)
        assert (verdict.agreed, verdict.recorded) == (True, None)


STAT: dict[str, Any] = {"st_size": 4096, "st_blocks": 0, "st_blksize": 4096, "st_mode": "0o100600", "st_nlink": 1}


@pytest.mark.parametrize("field", STAT)
def test_every_field_of_fstat_counts(field: str) -> None:
    operation = v.Fstat(seq="s", i=0, fd="gm0", result=0, errno=None, **STAT)

    assert only(operation, Outcome(0, observed=STAT)).agreed
    assert not only(operation, Outcome(0, observed={**STAT, field: "other"})).agreed


def test_fstat_of_another_file_has_nothing_but_its_result() -> None:
    assert only(v.Fstat(seq="s", i=0, fd="kvm", result=0, errno=None), Outcome(0)).agreed


@pytest.mark.parametrize("field", ["gpa_out", "size_out"])
def test_what_pre_fault_wrote_back_counts_also_when_it_failed(field: str) -> None:
    operation = v.PreFault(
        seq="s", i=0, vcpu="c", gpa=0, size=8192, flags=0, errno="ENOENT", gpa_out=4096, size_out=4096
    )
    observed = {"gpa_out": 4096, "size_out": 4096}

    assert only(operation, Outcome(None, "ENOENT", observed)).agreed
    assert not only(operation, Outcome(None, "ENOENT", {**observed, field: 0})).agreed


@pytest.mark.parametrize(
    ("recorded", "got", "agreed"),
    [
        ({"result": 5, "signal": None}, Outcome(5, observed={"signal": None}), True),
        ({"result": None, "signal": "SIGBUS"}, Outcome(None, observed={"signal": "SIGBUS"}), True),
        ({"result": None, "signal": "SIGBUS"}, Outcome(None, observed={"signal": "SIGSEGV"}), False),
        ({"result": 5, "signal": None}, Outcome(None, observed={"signal": "SIGBUS"}), False),
        ({"result": 5, "signal": None}, Outcome(6, observed={"signal": None}), False),
    ],
)
def test_the_signal_of_a_host_access_counts(recorded: dict[str, Any], got: Outcome, agreed: bool) -> None:
    operation = v.HostRead(seq="s", i=0, buf="A", off=0, size=8, errno=None, **recorded)

    assert only(operation, got).agreed is agreed


# -- touches -----------------------------------------------------------------------------------------------------------


def touched(*exits: list[v.RecordedExit], count: int = 1, **recorded: Any) -> v.RunTouch:
    return v.RunTouch(
        seq="s",
        i=0,
        vm="vm0",
        vcpu="cpu0",
        boot_gpa=0,
        touches=[v.RecordedTouch(gpa=4096 * index, rw="r", size=8) for index in range(count)],
        exits=list(exits) or None,
        **recorded,
    )


EXIT: dict[str, Any] = {"errno": "EFAULT", "flags": 8, "gpa": 4096, "size": 4096}


@pytest.mark.parametrize("field", EXIT)
def test_every_field_of_an_exit_counts(field: str) -> None:
    operation = touched([v.RecordedExit("memory_fault", **EXIT)], result=0, errno=None)
    same = Exit("memory_fault", **EXIT)
    other = Exit("memory_fault", **{**EXIT, field: "EHWPOISON" if field == "errno" else 0})

    assert only(operation, Outcome(0, exits=[[same]])).agreed
    assert not only(operation, Outcome(0, exits=[[other]])).agreed


@pytest.mark.parametrize(
    "got",
    [
        [[Exit("mmio", gpa=0, len=8, is_write=0), DONE]],
        [[DONE, DONE]],
        [[]],
        [[Exit("done", value=1)]],
        [[Exit("done")]],
    ],
)
def test_kind_number_and_value_of_the_exits_count(got: list[list[Exit]]) -> None:
    operation = touched([v.RecordedExit("done", value=0)], result=0, errno=None)

    assert not only(operation, Outcome(0, exits=got)).agreed


def test_each_touch_is_an_operation_of_its_own() -> None:
    right, wrong = [v.RecordedExit("done", value=0)], [v.RecordedExit("done", value=9)]
    operation = touched(right, wrong, right, count=3, result=0, errno=None)

    verdicts = list(compare(operation, Outcome(0, exits=[[DONE]] * 3)))

    assert [(verdict.touch, verdict.agreed) for verdict in verdicts] == [(0, True), (1, False), (2, True)]
    assert verdicts[1].recorded == [{"exit": "done", "value": 9}]
    assert verdicts[1].got == [{"exit": "done", "value": 0}]


def test_a_bare_run_that_failed_is_one_operation_with_its_errno() -> None:
    assert only(touched(errno="ENOTTY"), Outcome(None, "ENOTTY")).agreed
    assert not only(touched(errno="ENOTTY"), Outcome(None, "EBADF")).agreed
    assert not only(touched(errno="ENOTTY"), Outcome(0, exits=[[DONE]])).agreed


def test_fewer_recorded_exits_than_touches_is_a_difference_not_a_crash() -> None:
    operation = touched([v.RecordedExit("done", value=0)], count=2, result=0, errno=None)

    assert [verdict.agreed for verdict in compare(operation, Outcome(0, exits=[[DONE], [DONE]]))] == [True, False]


def test_touches_that_were_never_run_agree_with_anything() -> None:
    verdicts = list(compare(touched(count=2), Outcome(0, exits=[[DONE], [DONE]])))

    assert [(verdict.agreed, verdict.recorded) for verdict in verdicts] == [(True, None)] * 2


# -- known divergences -------------------------------------------------------------------------------------------------


def test_a_difference_that_is_listed_is_known_and_agreement_never_is() -> None:
    operation = v.CheckExtension(seq="s", i=0, on="kvm", cap=77, result=5, errno=None)

    known, agreed = only(operation, Outcome(0)), only(operation, Outcome(5))

    assert known.divergence is not None
    assert known.divergence.name == "other-capabilities"
    assert (known.agreed, agreed.agreed, agreed.divergence) == (False, True, None)


def test_the_deciding_check_is_handed_on() -> None:
    verdict = only(create(result="vm0", errno=None), Outcome(None, "EINVAL", check="vm-type-offered", reason="type 1"))

    assert (verdict.check, verdict.reason) == ("vm-type-offered", "type 1")
