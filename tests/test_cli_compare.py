"""``guestmem run --on`` and ``--record``, ``diff`` and ``fuzz``: two backends compared from the command line."""

from __future__ import annotations

import json
import os
import platform
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from program import Guestmem
from recordings import Json, begin, gmem, line, vm, write

from guestmem import targets
from guestmem.errors import BackendUnavailable
from guestmem.model.process import Process
from guestmem.model.profiles import V6_12
from guestmem.recordings.calls import Fallocate
from guestmem.recordings.reader import read_sequences
from guestmem.recordings.target import Target

FINDINGS = sorted((Path(__file__).parent.parent / "examples" / "findings").glob("*.jsonl"))


class Forgetful(Process):
    """A model with a bug: it punches no holes, and says it did."""

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        if mode != 3:
            super().fallocate(fd, mode, offset, length)


class Crashing(Process):
    """A kernel that takes the process with it."""

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def slot(i: int, number: int, offset: int) -> Json:
    fields: Json = {"vm": "vm0", "flags": 4, "userspace_addr": {"abs": 0}, "guest_memfd": "gm0"}
    return line(
        "set_user_memory_region2", i, slot=number, gpa=number << 20, size=0x2000, guest_memfd_offset=offset, **fields
    )


OVERLAP = [begin("v6.12"), vm(0), gmem(1), slot(2, 0, 0), slot(3, 1, 0x1000)]  # EINVAL until 7.2, there EEXIST


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Callable[[type[Process]], None]:
    """Compare the model of 6.12 with another kind of process, whatever --on says."""

    def pair_with(kind: type[Process]) -> None:
        model = targets.target_named("model:v6.12")
        other = replace(model, name="other", open=lambda begin: kind(V6_12), real=True, isolate=True)
        monkeypatch.setattr(targets, "pair_named", lambda on, profile: (model, other))

    return pair_with


# -- run ---------------------------------------------------------------------------------------------------------------


def test_what_was_observed_is_written_and_agrees_when_it_is_run_again(
    guestmem_command: Guestmem, tmp_path: Path
) -> None:
    bare, seen = write(tmp_path / "bare.jsonl", *OVERLAP), tmp_path / "seen.jsonl.gz"

    assert guestmem_command("run", "--record", seen, bare).code == 0
    [sequence] = read_sequences(seen)
    assert [operation.errno for operation in sequence.operations] == [None, None, None, "EINVAL"]
    assert "4 of 4 operations agree" in guestmem_command("run", seen).out
    ended = guestmem_command("run", "--profile", "v7.2", seen)
    assert (ended.code, "EEXIST" in ended.out) == (1, True)


def test_a_recording_that_cannot_be_written_is_one_line(guestmem_command: Guestmem, tmp_path: Path) -> None:
    ended = guestmem_command("run", "--record", tmp_path / "no" / "r.jsonl", write(tmp_path / "r.jsonl", *OVERLAP))

    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("command", [("run",), ("diff", "--on", "model")])
def test_without_the_kernel_that_was_asked_for_it_ends_with_4(
    command: tuple[str, ...], guestmem_command: Guestmem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> Target:
        raise BackendUnavailable("there is no /dev/kvm: load kvm_intel or kvm_amd")

    monkeypatch.setattr(targets, "_kvm", missing)

    ended = guestmem_command(*command, "--on", "kvm", write(tmp_path / "r.jsonl", *OVERLAP))

    assert ended.code == 4
    assert ended.out == ""
    assert "there is no /dev/kvm" in ended.err


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_what_the_kernels_were_found_to_do_the_model_does(path: Path, guestmem_command: Guestmem) -> None:
    """Recordings of 6.12 and 6.18: docs/findings.md. What depends on the host's page tables is a listed divergence."""
    known = "1 known divergence (shadow-prefetch 1)" if path.stem == "shadow-prefetch" else "0 known divergences"

    ended = guestmem_command("run", path)

    assert ended.code == 0, ended.out
    assert f", {known}, 0 differences" in ended.out


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_what_this_machines_kernel_was_found_to_do_it_does_again(path: Path, guestmem_command: Guestmem) -> None:
    [sequence] = read_sequences(path)
    if sequence.begin.kernel != f"kvm: Linux {platform.release()}":
        pytest.skip(f"found on {sequence.begin.kernel}")

    ended = guestmem_command("run", "--on", "kvm", path)

    assert ended.code == 0, ended.out
    assert ", 0 known divergences, 0 differences" in ended.out


# -- diff --------------------------------------------------------------------------------------------------------------


def test_differences_are_grouped_by_cause_with_a_trace_to_paste(guestmem_command: Guestmem, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *OVERLAP, *({**each, "seq": "t"} for each in OVERLAP))

    ended = guestmem_command("diff", path, "--on", "model:v6.12", "--on", "model:v7.2")

    assert ended.code == 1
    assert "EINVAL" in ended.out
    assert "EEXIST" in ended.out
    assert "2 sequences" in ended.out
    pasted = [text.strip() for text in ended.out.splitlines() if text.startswith("    {")]
    again = tmp_path / "again.jsonl"
    again.write_text("\n".join(pasted) + "\n")
    assert guestmem_command("diff", again, "--on", "model:v6.12", "--on", "model:v7.2").code == 1


def test_a_backend_agrees_with_itself(guestmem_command: Guestmem, tmp_path: Path) -> None:
    ended = guestmem_command(
        "diff", write(tmp_path / "r.jsonl", *OVERLAP), "--on", "model:v6.12", "--on", "model:v6.12"
    )

    assert ended.code == 0
    assert "4 operations of 1 sequence compared, 0 known divergences, 0 sequences differ, 0 causes" in ended.out


def test_json_has_the_causes_and_their_recordings(guestmem_command: Guestmem, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *OVERLAP)

    ended = guestmem_command("diff", "--json", path, "--on", "model:v6.12", "--on", "model:v7.2")

    report = json.loads(ended.out)
    assert (report["a"], report["b"], report["sequences"], report["operations"]) == ("model:v6.12", "model:v7.2", 1, 4)
    [group] = report["new"]
    assert (group["cause"]["a"], group["cause"]["b"], group["sequences"]) == ("EINVAL", "EEXIST", 1)
    assert [operation["op"] for operation in group["recording"]][-1] == "set_user_memory_region2"


@pytest.mark.parametrize("on", [["model"], ["model", "model", "model"]])
def test_diff_takes_two_backends(on: list[str], guestmem_command: Guestmem, tmp_path: Path) -> None:
    options = [word for name in on for word in ("--on", name)]

    ended = guestmem_command("diff", write(tmp_path / "r.jsonl", *OVERLAP), *options)

    assert (ended.code, len(ended.err.splitlines())) == (2, 1)


# -- fuzz --------------------------------------------------------------------------------------------------------------


def test_a_bug_is_found_and_shrunk_to_a_recording_that_shows_it(
    guestmem_command: Guestmem, tmp_path: Path, beside: Callable[[type[Process]], None]
) -> None:
    beside(Forgetful)

    ended = guestmem_command(
        "fuzz", "--on", "a", "--on", "b", "--sequences", "20", "--seed", "1", "--shrink", "2", "--out", tmp_path
    )

    assert ended.code == 1
    written = {path: next(iter(read_sequences(path))) for path in sorted(tmp_path.iterdir())}
    assert min(len(sequence.operations) for sequence in written.values()) <= 5
    for path, sequence in written.items():
        assert any(isinstance(each, Fallocate) and each.mode == 3 for each in sequence.operations), (
            "nothing else is wrong with it"
        )
        assert guestmem_command("diff", path, "--on", "a", "--on", "b").code == 1


def test_the_same_kernel_twice_differs_in_nothing(
    guestmem_command: Guestmem, beside: Callable[[type[Process]], None]
) -> None:
    beside(Process)

    ended = guestmem_command("fuzz", "--on", "a", "--on", "b", "--sequences", "40", "--json")

    report = json.loads(ended.out)
    assert ended.code == 0
    assert (report["sequences"], report["differ"], report["new"], report["ended"]) == (40, [], [], {})
    assert report["operations"] > 1000


def test_a_kernel_that_takes_the_process_with_it_is_a_difference_that_says_so(
    guestmem_command: Guestmem, tmp_path: Path, beside: Callable[[type[Process]], None]
) -> None:
    beside(Crashing)

    ended = guestmem_command("fuzz", "--on", "a", "--on", "b", "--sequences", "10", "--shrink", "0", "--out", tmp_path)

    assert ended.code == 1
    assert "the process: it was ended by SIGKILL" in ended.out
    written = list(tmp_path.iterdir())
    assert written
    for path in written:
        [sequence] = read_sequences(path)
        assert isinstance(sequence.operations[-1], Fallocate)


def test_seeds_go_on_where_the_last_run_ended(
    guestmem_command: Guestmem, beside: Callable[[type[Process]], None]
) -> None:
    beside(Process)

    def operations(seed: int, sequences: int) -> int:
        ended = guestmem_command("fuzz", "--on", "a", "--on", "b", "--json", "--seed", seed, "--sequences", sequences)
        count: int = json.loads(ended.out)["operations"]
        return count

    assert operations(5, 6) == operations(5, 2) + operations(7, 4)


def test_seeds_that_differ_are_named_while_the_others_run(
    guestmem_command: Guestmem, beside: Callable[[type[Process]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    beside(Crashing)
    monkeypatch.setattr("guestmem.cli.fuzz._EVERY_S", 0.0)

    ended = guestmem_command("fuzz", "--on", "a", "--on", "b", "--sequences", "20", "--json", "--shrink", "0")

    *_, last = ended.err.splitlines()
    found = json.loads(ended.out)["differ"]
    assert len(found) > 5
    assert last.startswith("20 of 20 sequences, ")
    assert f"{len(found)} differ: seed {', '.join(map(str, found[:5]))} and more" in last
