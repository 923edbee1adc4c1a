"""Whole recordings: what is counted, and what a difference tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from recordings import Json, begin, failed, gmem, line, touches, vcpu, vm, went, write

from guestmem.model.process import Process
from guestmem.recordings.reader import RecordingError
from guestmem.recordings.run import FileReport, run_recording
from guestmem.recordings.target import Target
from guestmem.targets import target_named

MMIO = [
    {"exit": "mmio", "gpa": 0, "len": 8, "is_write": 0},
    {"exit": "done", "value": 0x5A5A5A5A5A5A5A5A},
]


def run(path: Path, *lines: Json, profile: str | None = None) -> FileReport:
    """Run a recording of these lines."""
    return run_recording(write(path / "r.jsonl", *lines), target_named("model", profile))


def modelled(open_backend: Callable[[object], Process] = lambda first: Process()) -> Target:
    """A place of one's own."""
    return Target("model", open_backend, lambda first: "v7.2", lambda first: "v7.2")


def test_agreement_is_counted_by_operation_and_each_touch_is_one(tmp_path: Path) -> None:
    report = run(
        tmp_path,
        begin(),
        vm(0),
        vcpu(1),
        touches(2, 0, 0, exits=[MMIO, MMIO]),
        failed("create_guest_memfd", "EINVAL", 3, vm="vm0", size=0, flags=0, out="gm0"),
    )

    assert (report.sequences, report.operations, report.agreed, report.compared) == (1, 5, 5, 5)
    assert report.outcomes == {
        ("create_vm", "ok"): 1,
        ("create_vcpu", "ok"): 1,
        ("touch", "mmio"): 2,
        ("create_guest_memfd", "EINVAL"): 1,
    }
    assert (report.differences, report.known_divergences) == ([], 0)


def test_a_difference_tells_where_what_and_which_check_decided(tmp_path: Path) -> None:
    report = run(
        tmp_path, begin(), vm(0), went("create_guest_memfd", 7, "gm0", vm="vm0", size=0x1001, flags=0, out="gm0")
    )

    [difference] = report.differences
    assert (difference.file, difference.line) == (str(tmp_path / "r.jsonl"), 3)
    assert (difference.sequence, difference.index, difference.op, difference.touch) == (
        "s",
        7,
        "create_guest_memfd",
        None,
    )
    assert difference.arguments == {"vm": "vm0", "size": 0x1001, "flags": 0, "out": "gm0"}
    assert difference.recorded == {"result": "gm0", "errno": None}
    assert difference.got == {"result": None, "errno": "EINVAL"}
    assert difference.check == "size-aligned"
    assert "0x1001" in difference.reason


def test_the_difference_of_a_touch_names_the_touch(tmp_path: Path) -> None:
    report = run(tmp_path, begin(), vm(0), vcpu(1), touches(2, 0, 0x1000, exits=[MMIO, MMIO]))

    [difference] = report.differences
    assert (difference.op, difference.index, difference.touch) == ("touch", 2, 1)
    assert difference.arguments == {"vcpu": "cpu0", "gpa": 0x1000, "rw": "r", "size": 8}


def test_known_divergences_are_counted_apart_from_differences_and_by_name(tmp_path: Path) -> None:
    report = run(tmp_path, begin(), went("check_extension", 0, 17, on="kvm", cap=999))

    assert (report.agreed, report.known_divergences, report.differences) == (0, 1, [])
    assert report.divergences == {"other-capabilities": 1}


def test_a_recording_without_outcomes_is_simply_run(tmp_path: Path) -> None:
    lines = [line("create_vm", 0, type=1, out="vm0"), line("create_vm", 1, type=9, out="vm1")]
    report = run(tmp_path, begin(), *lines)

    assert (report.operations, report.agreed, report.compared) == (2, 2, 0)
    assert report.outcomes == {("create_vm", "ok"): 1, ("create_vm", "EINVAL"): 1}


def test_every_sequence_is_a_fresh_process_with_the_kernel_it_names(tmp_path: Path) -> None:
    report = run(
        tmp_path,
        begin("612"),
        vm(0),
        begin("618", "t"),
        {**failed("create_vm", "EINVAL", type=1, out="vm0"), "seq": "t"},
        begin("612", "u"),
        {**failed("close", "EBADF", fd=65537), "seq": "u"},
    )

    assert (report.sequences, report.agreed, report.differences) == (3, 3, [])
    assert report.profiles == ["v6.12", "v6.18"]


def test_the_users_profile_is_taken_for_every_sequence(tmp_path: Path) -> None:
    report = run(tmp_path, begin("612"), vm(0), begin("618", "t"), profile="v7.2")

    assert report.profiles == ["v7.2"]


def test_a_mapping_that_failed_here_costs_its_own_operations_and_not_the_rest(tmp_path: Path) -> None:
    lines = [
        begin("618"),
        vm(0, type=0),
        gmem(1, flags=3),
        went("mmap", 2, "map0", fd="gm0", length=0x1000, prot=3, flags=1, offset=0, out="map0"),
        went("host_write", 3, map="map0", off=0, size=8, value=5, signal=None),
        went("fsync", 4, fd="gm0") | {"result": None, "errno": "EINVAL"},
    ]
    assert run(tmp_path, *lines).differences == []

    report = run(tmp_path, *lines, profile="v6.12")

    assert [difference.op for difference in report.differences] == ["create_guest_memfd", "mmap", "host_write", "fsync"]
    assert "not_issued" in report.differences[2].got
    assert report.outcomes["host_write", "not run"] == 1
    assert report.operations == 5


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        ([begin(), vm(0), line("close", 1, fd="nobody")], 3),
        ([begin(), vm(0), begin("613", "t")], 3),
        ([begin(), vm(0), begin("", "t")], 3),
        ([begin(geometry="vax")], 1),
        ([begin(rule="vax")], 1),
        ([begin(pools={"2M": -1})], 1),
        ([begin(gpa_bits=-5)], 1),
        ([begin(vm_types=[7])], 1),
    ],
)
def test_what_cannot_be_run_is_a_recording_error_on_its_line(tmp_path: Path, lines: list[Json], number: int) -> None:
    with pytest.raises(RecordingError) as refused:
        run(tmp_path, *lines)

    assert refused.value.line == number


def test_every_backend_is_shut_down_also_when_a_line_cannot_be_run(tmp_path: Path) -> None:
    opened: list[Process] = []
    allocated = went("fallocate", 2, fd="gm0", mode=1, offset=0, len=4096)
    unknown = line("close", seq="t", fd="nobody")
    path = write(tmp_path / "r.jsonl", begin(), vm(0), gmem(1), allocated, begin(seq="t"), unknown)

    def open_backend(first: object) -> Process:
        opened.append(Process())
        return opened[-1]

    with pytest.raises(RecordingError):
        run_recording(path, modelled(open_backend))

    assert len(opened) == 2
    assert [process.pools.used() for process in opened] == [{}, {}]
    with pytest.raises(OSError, match="EBADF"):
        opened[1].fsync(0)


def test_progress_is_told_once_a_sequence(tmp_path: Path) -> None:
    told: list[None] = []
    path = write(tmp_path / "r.jsonl", begin(), begin(seq="t"), begin(seq="u"))

    run_recording(path, modelled(), lambda: told.append(None))

    assert len(told) == 3


def test_a_file_that_is_not_there_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_recording(tmp_path / "missing", modelled())
