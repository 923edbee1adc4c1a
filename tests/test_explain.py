"""Why one operation ended as it did: checks and steps, under every profile."""

from __future__ import annotations

from pathlib import Path

import pytest
from recordings import Json, begin, gmem, line, touches, vcpu, vm, write

from guestmem.explain import Explanation, explain_operation
from guestmem.model.profiles import PROFILES
from guestmem.recordings.reader import read_sequences


def explain(path: Path, *lines: Json) -> dict[str, list[Explanation]]:
    """The explanations of the last line, by profile."""
    [sequence] = read_sequences(write(path / "r.jsonl", *lines))
    by_profile: dict[str, list[Explanation]] = {}
    for explanation in explain_operation(sequence, len(sequence.operations) - 1):
        by_profile.setdefault(explanation.profile, []).append(explanation)
    return by_profile


def bind(i: int = 2, slot: int = 0, flags: int = 4, offset: int = 0, gpa: int = 0) -> Json:
    return line(
        "set_user_memory_region2",
        i,
        vm="vm0",
        slot=slot,
        flags=flags,
        gpa=gpa,
        size=0x2000,
        userspace_addr={"abs": 0},
        guest_memfd="gm0",
        guest_memfd_offset=offset,
    )


def test_a_refusal_is_explained_under_every_profile_by_the_ordered_checks_up_to_the_one_that_refused(
    tmp_path: Path,
) -> None:
    explained = explain(tmp_path, begin(), vm(0), gmem(1), bind(2), bind(3, slot=1, gpa=0x10000, offset=0x1000))

    assert list(explained) == list(PROFILES)
    for name, errno in (("v6.12", "EINVAL"), ("v7.2", "EEXIST"), ("next", "EEXIST")):
        [explanation] = explained[name]
        walked = explanation.walked
        assert explanation.outcome == {"result": None, "errno": errno}
        assert explanation.check == "binding-free"
        assert [check.passed for check in walked] == [True] * (len(walked) - 1) + [False]
        assert walked[-1].name == "binding-free"
        assert "0x1000" in walked[-1].text
        names = [check.name for check in walked]
        assert names.index("flags-valid") < names.index("gpa-free") < names.index("fd-open") < names.index("same-vm")
        assert all(check.rule and check.source for check in walked)


def test_profiles_that_part_earlier_explain_where(tmp_path: Path) -> None:
    explained = explain(tmp_path, begin(), vm(0, type=0), gmem(1), bind(2))

    assert {name: each.check for name, [each] in explained.items()} == {
        "v6.12": "flags-valid",
        "v6.18": "",
        "v7.2": "",
        "v7.3": "",
        "v7.4": "",
        "next": "",
    }


def test_what_succeeded_is_explained_too(tmp_path: Path) -> None:
    [explanation] = explain(tmp_path, begin(), vm(0), gmem(1))["v7.2"]

    assert explanation.outcome == {"result": "gm0", "errno": None}
    assert [check.passed for check in explanation.walked] == [True] * len(explanation.walked)
    assert {"flags-supported", "size-positive", "size-aligned"} <= {check.name for check in explanation.walked}


def test_a_guest_access_is_explained_by_its_steps_its_level_and_what_limited_it(tmp_path: Path) -> None:
    slot = line(
        "set_user_memory_region",
        2,
        vm="vm0",
        slot=0,
        flags=0,
        gpa=0x1000,
        size=0x400000,
        userspace_addr={"buf": "A", "off": 0x1000},
    )
    explained = explain(tmp_path, begin(), vm(0), vcpu(1), slot, touches(3, 0x1000, 0x9000))

    first, second = explained["v7.2"]
    assert (first.op, first.touch, second.touch) == ("touch", 0, 1)
    assert first.arguments == {"vcpu": "cpu0", "gpa": 0x1000, "rw": "r", "size": 8}
    assert first.outcome == [{"exit": "done", "value": 0}]
    names = [step.name for step in first.walked]
    for earlier, later in (("read-attribute", "look-up-slot"), ("look-up-slot", "get-page"), ("get-page", "no-leaf")):
        assert names.index(earlier) < names.index(later)
    limits = [step.text for step in first.walked if step.name == "no-leaf"]
    assert [limit.partition(":")[0] for limit in limits] == ["1G", "2M"]
    assert "slot-head" in limits[0]


def test_an_access_that_takes_no_fault_says_which_leaf_answers(tmp_path: Path) -> None:
    slot = line("set_user_memory_region", 2, vm="vm0", slot=0, flags=0, gpa=0, size=0x1000, userspace_addr={"buf": "A"})
    _, second = explain(tmp_path, begin(), vm(0), vcpu(1), slot, touches(3, 0, 8))["v7.2"]

    first_step = next(seen for seen in second.walked if seen.passed is None)
    assert (first_step.name, "4K leaf" in first_step.text) == ("stage-2", True)


def test_a_memory_fault_is_explained_by_the_step_that_found_nothing(tmp_path: Path) -> None:
    private = line("set_memory_attributes", 2, vm="vm0", address=0, size=0x1000, attributes=8, flags=0)

    explained = explain(tmp_path, begin(), vm(0), vcpu(1), private, touches(3, 0))

    [fault] = explained["v7.2"]
    assert fault.outcome == [{"exit": "memory_fault", "errno": "EFAULT", "gpa": 0, "flags": 8, "size": 4096}]
    assert "no slot has gfn 0x0" in [step.text for step in fault.walked]
    [unrun] = explained["v6.18"]
    assert unrun.outcome["errno"] == "EBADF", "that machine has no VM of type 1"


def test_only_the_operation_itself_is_explained_not_what_came_before(tmp_path: Path) -> None:
    lines = [begin(), vm(0), gmem(1), bind(2), line("fsync", 3, fd="gm0")]

    [explanation] = explain(tmp_path, *lines)["v7.2"]

    assert [seen.name for seen in explanation.walked] == ["descriptor-open", "file-has-fsync"]
    assert explanation.check == "file-has-fsync"


def test_a_sequence_that_uses_a_mapping_is_explained_under_kernels_that_cannot_map(tmp_path: Path) -> None:
    explained = explain(
        tmp_path,
        begin("618"),
        vm(0, type=0),
        gmem(1, flags=3),
        line("mmap", 2, fd="gm0", length=0x1000, prot=3, flags=1, offset=0, out="map0"),
        line("host_write", 3, map="map0", off=0, size=8, value=5),
        line("host_read", 4, map="map0", off=0, size=8),
    )

    assert explained["v6.18"][0].outcome == {"result": 5, "errno": None, "signal": None}
    assert "not_issued" in explained["v6.12"][0].outcome


@pytest.mark.parametrize("position", [0, 1])
def test_each_profile_runs_on_the_recordings_machine(tmp_path: Path, position: int) -> None:
    [sequence] = read_sequences(write(tmp_path / "r.jsonl", begin(vm_types=[0]), vm(0), gmem(1)))

    ended = {each.outcome["errno"] for each in explain_operation(sequence, position)}

    assert ended == ({"EINVAL"} if position == 0 else {"EBADF"})
