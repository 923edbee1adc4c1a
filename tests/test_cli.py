"""The command line: exit codes, one-line errors, the shape of --json."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from program import Ended, Guestmem
from recordings import SAMPLES, Json, begin, failed, gmem, line, touches, vcpu, vm, went, write
from typer.testing import CliRunner

from guestmem import cli
from guestmem.cli import app
from guestmem.version import __version__

PROJECT = Path(__file__).parent.parent
MMIO = [{"exit": "mmio", "gpa": 0, "len": 8, "is_write": 0}, {"exit": "done", "value": 0x5A5A5A5A5A5A5A5A}]
GOOD = [begin(), vm(0), failed("create_vm", "EINVAL", 1, type=9, out="vm1")]
BAD = [begin(), vm(0), failed("create_vm", "EEXIST", 5, type=9, out="vm1")]


@pytest.fixture
def guestmem(guestmem_command: Guestmem) -> Guestmem:
    """Short for what every test here does."""
    return guestmem_command


def refused(ended: Ended) -> str:
    """The one line of an input error."""
    assert (ended.code, ended.out) == (2, "")
    [text] = ended.err.splitlines()
    assert text.startswith("guestmem: ")
    assert len(text) < 400
    return text


# -- run: exit codes ---------------------------------------------------------------------------------------------------


def test_agreement_is_exit_0_and_the_last_line_sums_up(guestmem: Guestmem, tmp_path: Path) -> None:
    ended = guestmem("run", write(tmp_path / "r.jsonl", *GOOD))

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == "2 of 2 operations agree, 0 known divergences, 0 differences"


def test_the_shipped_recordings_of_real_kernels_agree(guestmem: Guestmem) -> None:
    ended = guestmem("run", *SAMPLES)

    assert ended.code == 0
    assert ended.out.splitlines()[-1].endswith(", 0 differences")


def test_a_difference_is_exit_1_and_shown_as_a_trace_with_the_check_that_decided(
    guestmem: Guestmem, tmp_path: Path
) -> None:
    path = write(tmp_path / "r.jsonl", *BAD)
    ended = guestmem("run", path)

    assert (ended.code, ended.err) == (1, "")
    trace = ended.out[ended.out.index("difference 1") :].splitlines()
    assert trace[0] == f"difference 1: {path}:3: s, operation 5"
    assert trace[1].split() == ["create_vm", "type=9", "out=vm1"]
    assert trace[2].split() == ["recorded", "errno=EEXIST"]
    assert trace[3].split() == ["model", "errno=EINVAL"]
    assert trace[4].split()[:2] == ["decided", "[vm-type-offered]"]
    assert trace[-1] == "1 of 2 operations agree, 0 known divergences, 1 difference"


def test_one_bad_file_among_good_ones_is_exit_1(guestmem: Guestmem, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.jsonl", *GOOD), write(tmp_path / "bad.jsonl", *BAD)

    assert guestmem("run", good, bad, good).code == 1


def test_known_divergences_are_named_and_exit_0(guestmem: Guestmem, tmp_path: Path) -> None:
    ended = guestmem("run", write(tmp_path / "r.jsonl", begin(), went("check_extension", 0, 5, on="kvm", cap=999)))

    assert ended.code == 0
    assert ended.out.splitlines()[-1] == (
        "0 of 1 operations agree, 1 known divergence (other-capabilities 1), 0 differences"
    )


def test_a_recording_without_outcomes_is_simply_run(guestmem: Guestmem, tmp_path: Path) -> None:
    ended = guestmem("run", write(tmp_path / "r.jsonl", begin(), line("create_vm", 0, type=1, out="vm0")))

    assert ended.code == 0
    assert ended.out.splitlines()[-1] == "1 operation was run; none had a recorded outcome to compare with"


def test_operations_are_counted_by_name_and_by_how_they_ended(guestmem: Guestmem, tmp_path: Path) -> None:
    ended = guestmem("run", write(tmp_path / "r.jsonl", *GOOD, vcpu(2), touches(3, 0, 0, exits=[MMIO, MMIO])))

    lines = [text.split() for text in ended.out.splitlines()]
    assert ["create_vm", "2", "EINVAL", "1,", "ok", "1"] in lines
    assert ["touch", "2", "mmio", "2"] in lines


@pytest.mark.parametrize(("show", "shown"), [(0, 0), (1, 1), (2, 2), (99, 7)])
def test_show_says_how_many_differences_are_shown_not_how_many_count(
    guestmem: Guestmem, tmp_path: Path, show: int, shown: int
) -> None:
    wrong = [failed("create_vm", "EEXIST", i, type=9, out="vm1") for i in range(7)]
    ended = guestmem("run", "--show", show, write(tmp_path / "r.jsonl", begin(), *wrong))

    assert ended.out.count("\ndifference ") == shown
    assert ended.out.splitlines()[-1].endswith("7 differences")


def test_the_users_profile_replaces_the_recordings(guestmem: Guestmem, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", begin("612"), vm(0, type=1))

    assert guestmem("run", path).code == 0
    ended = guestmem("run", "--profile", "v6.18", path)
    assert ended.code == 1
    assert "profile v6.18" in ended.out


# -- run: --json -------------------------------------------------------------------------------------------------------

FILE_KEYS = ["file", "profile", "sequences", "operations", "agreed", "known_divergences", "not_issued", "differences"]


def test_json_is_one_object_with_files_and_differences_and_nothing_else(guestmem: Guestmem, tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.jsonl", *GOOD), write(tmp_path / "bad.jsonl", *BAD)
    ended = guestmem("run", "--json", good, bad)

    assert (ended.code, ended.err) == (1, "")
    report: dict[str, Any] = json.loads(ended.out)
    assert list(report) == ["format", "files", "differences"]
    assert [list(file) for file in report["files"]] == [FILE_KEYS, FILE_KEYS]
    assert report["files"] == [
        dict(zip(FILE_KEYS, (str(good), "v6.12", 1, 2, 2, 0, 0, 0), strict=True)),
        dict(zip(FILE_KEYS, (str(bad), "v6.12", 1, 2, 1, 0, 0, 1), strict=True)),
    ]
    [difference] = report["differences"]
    assert (difference["file"], difference["line"], difference["sequence"], difference["index"]) == (
        str(bad),
        3,
        "s",
        5,
    )
    assert difference["op"] == "create_vm"
    assert difference["arguments"] == {"type": 9, "out": "vm1"}
    assert difference["recorded"] == {"result": None, "errno": "EEXIST"}
    assert difference["got"] == {"result": None, "errno": "EINVAL"}
    assert difference["check"] == "vm-type-offered"


def test_json_counts_each_guest_touch_as_an_operation(guestmem: Guestmem, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", begin(), vm(0), vcpu(1), touches(2, 0, 0, exits=[MMIO, MMIO]))

    [file] = json.loads(guestmem("run", "--json", path).out)["files"]

    assert (file["operations"], file["agreed"]) == (4, 4)


def test_json_shows_all_differences_whatever_show_says(guestmem: Guestmem, tmp_path: Path) -> None:
    wrong = [failed("create_vm", "EEXIST", i, type=9, out="vm1") for i in range(7)]
    ended = guestmem("run", "--json", "--show", 1, write(tmp_path / "r.jsonl", begin(), *wrong))

    assert len(json.loads(ended.out)["differences"]) == 7


def test_json_names_every_profile_of_a_file_with_several(guestmem: Guestmem, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", begin("612"), begin("618", "t"), begin("612", "u"))

    [file] = json.loads(guestmem("run", "--json", path).out)["files"]

    assert (file["profile"], file["sequences"], file["operations"]) == ("v6.12, v6.18", 3, 0)


def test_json_writes_64_bit_numbers_exactly(guestmem: Guestmem, tmp_path: Path) -> None:
    huge = (1 << 64) - 1
    ended = guestmem(
        "run", "--json", write(tmp_path / "r.jsonl", begin(), went("create_vm", 0, "v", type=huge, out="v"))
    )

    assert f'"type": {huge}' in ended.out
    assert json.loads(ended.out)["differences"][0]["arguments"]["type"] == huge


# -- bad input ---------------------------------------------------------------------------------------------------------


BEGIN = b'{"op":"begin","seq":"s","profile":"612"}\n'
UNREADABLE = {
    "empty": (b"", 1),
    "nonsense": (b"nonsense\n", 1),
    "fields missing": (BEGIN + b'{"op":"create_vm"}\n', 2),
    "unknown operation": (BEGIN + b'{"op":"launch_rockets"}\n', 2),
    "deep": (b"[" * 200_000, 1),
    "huge number": (BEGIN + b'{"op":"create_vm","type":' + b"9" * 10_000, 2),
    "truncated gzip": (gzip.compress(BEGIN)[:-5], 1),
}
UNRUNNABLE = {
    "unknown profile": (b'{"op":"begin","seq":"s","profile":"613"}\n', 1),
    "no profile": (b'{"op":"begin","seq":"s"}\n', 1),
    "unknown geometry": (b'{"op":"begin","seq":"s","profile":"612","geometry":"vax"}\n', 1),
    "impossible machine": (b'{"op":"begin","seq":"s","profile":"612","gpa_bits":-5}\n', 1),
    "unknown pool": (b'{"op":"begin","seq":"s","profile":"612","pools":{"3M":1}}\n', 1),
    "unknown handle": (BEGIN + b'{"op":"close","seq":"s","i":0,"fd":"nobody"}\n', 2),
    "unknown buffer": (BEGIN + b'{"op":"host_read","seq":"s","i":0,"buf":"Q","off":0,"size":8}\n', 2),
}


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("what", [*UNREADABLE, *UNRUNNABLE])
def test_what_cannot_be_read_or_run_is_one_line_with_file_and_line_and_exit_2(
    guestmem: Guestmem, tmp_path: Path, options: list[str], what: str
) -> None:
    content, number = {**UNREADABLE, **UNRUNNABLE}[what]
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)

    assert f"{path}:{number}: " in refused(guestmem("run", *options, path))


@pytest.mark.parametrize("what", UNREADABLE)
def test_explain_refuses_what_cannot_be_read_in_the_same_words(guestmem: Guestmem, tmp_path: Path, what: str) -> None:
    content, number = UNREADABLE[what]
    path = tmp_path / "r.jsonl"
    path.write_bytes(content)

    assert f"{path}:{number}: " in refused(guestmem("explain", path))


@pytest.mark.parametrize(
    ("changes", "operation", "number"),
    [
        ({}, line("close", 1, fd="nobody"), 3),
        ({}, line("host_read", 1, buf="Q", off=0, size=8), 3),
        ({"geometry": "vax"}, line("fsync", 1, fd=0), 1),
        ({"rule": "vax"}, line("fsync", 1, fd=0), 1),
        ({"pools": {"3M": 1}}, line("fsync", 1, fd=0), 1),
    ],
)
@pytest.mark.parametrize("op", [1, 2])
def test_explain_names_the_line_that_cannot_be_run_also_when_it_stands_before(
    guestmem: Guestmem, tmp_path: Path, changes: Json, operation: Json, number: int, op: int
) -> None:
    path = write(tmp_path / "r.jsonl", begin(**changes), vm(0), operation, line("fsync", 2, fd=0))

    assert f"{path}:{number}: " in refused(guestmem("explain", "--op", op, path))


@pytest.mark.parametrize("command", ["run", "explain"])
@pytest.mark.parametrize("what", ["missing", "directory"])
def test_a_file_that_cannot_be_opened_is_one_line_that_names_it(
    guestmem: Guestmem, tmp_path: Path, command: str, what: str
) -> None:
    path = tmp_path / what
    if what == "directory":
        path.mkdir()

    assert str(path) in refused(guestmem(command, path))


def test_a_bad_file_after_good_ones_prints_no_half_report(guestmem: Guestmem, tmp_path: Path) -> None:
    refused(guestmem("run", "--json", write(tmp_path / "good.jsonl", *GOOD), tmp_path / "missing"))


def test_an_unknown_profile_is_one_line_that_lists_the_known_ones(guestmem: Guestmem, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *GOOD)

    for command in ("run", "explain"):
        assert "v6.12, v6.18, v7.2, v7.3, v7.4, next" in refused(guestmem(command, "--profile", "v5.0", path))


@pytest.mark.parametrize(
    "arguments", ["run", "explain", "fly", "run --fast x", "run --show -1 x", "run --show x y", "explain --op x y"]
)
def test_wrong_usage_is_one_line_that_names_the_help(guestmem: Guestmem, arguments: str) -> None:
    assert "see guestmem" in refused(guestmem(*arguments.split()))


def test_no_arguments_at_all_are_answered_with_the_help_and_exit_2(guestmem: Guestmem) -> None:
    ended = guestmem()

    assert (ended.code, ended.err.strip()) == (2, "")
    assert "Usage: guestmem" in ended.out


@pytest.mark.parametrize("command", ["run", "explain"])
def test_names_in_a_recording_cannot_write_to_the_terminal(guestmem: Guestmem, tmp_path: Path, command: str) -> None:
    name = "a\x1b[2J\nb\x07"
    wrong = failed("create_vm", "EEXIST\x1b[0m", 0, type=9, out="\x1b[31m") | {"seq": name}
    ended = guestmem(command, write(tmp_path / "r.jsonl", begin(seq=name), wrong))

    assert ended.code == (1 if command == "run" else 0)
    assert not set("\x1b\x07") & set(ended.out + ended.err)


# -- explain -----------------------------------------------------------------------------------------------------------


def explained(tmp_path: Path) -> Path:
    lines: list[Json] = [*GOOD, gmem(2), failed("create_guest_memfd", "EINVAL", 3, vm="vm0", size=1, flags=0, out="g")]
    return write(tmp_path / "r.jsonl", *lines, begin("618", "t"), {**vm(0, type=0), "seq": "t"})


def test_explain_begins_with_the_first_refused_operation(guestmem: Guestmem, tmp_path: Path) -> None:
    path = explained(tmp_path)
    ended = guestmem("explain", path)

    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[0] == f"{path}:3: s, operation 1"
    assert "create_vm type=9 out=vm1" in ended.out
    assert "vm-type-offered" in ended.out


def test_explain_shows_for_every_check_how_it_went_under_every_profile(guestmem: Guestmem, tmp_path: Path) -> None:
    ended = guestmem("explain", "--op", 3, explained(tmp_path))

    lines = [text.split() for text in ended.out.splitlines()]
    assert ended.code == 0
    assert ["check", "v6.12", "v6.18", "v7.2", "v7.3", "v7.4", "next", "values"] in lines
    assert any(words[:5] == ["size-positive", "passed", "-", "passed", "passed"] for words in lines)
    assert any(words[:5] == ["size-aligned", "EINVAL", "-", "EINVAL", "EINVAL"] for words in lines)


def test_explain_can_be_limited_to_profiles(guestmem: Guestmem, tmp_path: Path) -> None:
    ended = guestmem("explain", "--op", 2, "--profile", "v7.2", "--profile", "next", explained(tmp_path))

    assert ended.code == 0
    assert "v6.12" not in ended.out.partition("\n")[2]


def test_explain_finds_an_operation_in_another_sequence(guestmem: Guestmem, tmp_path: Path) -> None:
    ended = guestmem("explain", "--sequence", "t", "--op", 0, explained(tmp_path))

    assert ended.out.splitlines()[0].endswith(":7: t, operation 0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--op", "9"], "no operation 9"),
        (["--sequence", "u"], "no sequence 'u'"),
        (["--sequence", "t"], "no refused operation"),
    ],
)
def test_explain_of_what_is_not_there_is_one_line(
    guestmem: Guestmem, tmp_path: Path, arguments: list[str], says: str
) -> None:
    path = explained(tmp_path)

    text = refused(guestmem("explain", *arguments, path))
    assert says in text
    assert str(path) in text


def test_explain_as_json_is_one_object_with_every_check_under_every_profile(guestmem: Guestmem, tmp_path: Path) -> None:
    path = explained(tmp_path)
    report = json.loads(guestmem("explain", "--json", "--op", 3, path).out)

    assert (report["file"], report["sequence"], report["operation"]) == (str(path), "s", 3)
    assert [each["profile"] for each in report["explanations"]] == ["v6.12", "v6.18", "v7.2", "v7.3", "v7.4", "next"]
    for each in report["explanations"]:
        if each["profile"] != "v6.18":  # that machine has no such VM
            assert each["outcome"] == {"result": None, "errno": "EINVAL"}
            assert [check["passed"] for check in each["walked"]][-1] is False


def test_explain_of_a_guest_access_tells_steps_level_and_limits(guestmem: Guestmem, tmp_path: Path) -> None:
    slot = went(
        "set_user_memory_region",
        2,
        vm="vm0",
        slot=0,
        flags=0,
        gpa=0x1000,
        size=0x200000,
        userspace_addr={"buf": "A", "off": 0x1000},
    )
    path = write(tmp_path / "r.jsonl", begin(), vm(0), vcpu(1), slot, touches(3, 0x1000))
    ended = guestmem("explain", "--op", 3, "--profile", "v7.2", path)

    assert ended.code == 0
    for words in ("look-up-slot", "get-page", "1G: slot-head", "2M: slot-head", "mapped by a 4K leaf"):
        assert words in ended.out


# -- the program -------------------------------------------------------------------------------------------------------


def examples() -> list[str]:
    """The commands that the help of every command shows."""
    shown = [module.EXAMPLES for module in vars(cli).values() if hasattr(module, "EXAMPLES")]
    assert len(shown) >= 9
    return [line.strip() for text in shown for line in text.splitlines() if line.startswith("    guestmem ")]


EXAMPLES = {example: shlex.split(example.partition("|")[0])[1:] for example in examples()}
READING = ("check", "rules", "plan", "run", "explain", "diff")  # and no kernel, solver or VMM


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_files_that_an_example_names_are_there(example: str) -> None:
    words = EXAMPLES[example]
    written = {after for before, after in pairwise(words) if before in ("--html", "--record", "--save")}

    for word in set(words) - written:
        if re.search(r"\.(jsonl?|gz|txt|toml|xml|sarif|html)$", word):
            assert list(PROJECT.glob(word)), f"{word} is no file of the project"


@pytest.mark.parametrize(
    "example",
    [name for name, words in EXAMPLES.items() if words[0] in READING and not re.search("kvm|qemu:|--html", name)],
)
def test_an_example_that_only_reads_files_runs(
    example: str, guestmem: Guestmem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    arguments = [name for word in EXAMPLES[example] for name in (PROJECT.glob(word) if "*" in word else [word])]

    ended = guestmem(*arguments)

    assert (ended.code in (0, 1), ended.err) == (True, "")
    assert ended.out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["run", "--help"], ["explain", "-h"]])
def test_help_says_what_there_is(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)

    assert result.exit_code == 0
    assert "Usage" in result.output


def test_the_version_is_the_packages() -> None:
    result = CliRunner().invoke(app, ["--version"])

    assert (result.exit_code, result.output) == (0, f"guestmem {__version__}\n")


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "guestmem", *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_as_a_process_of_its_own_it_ends_the_same_way(tmp_path: Path) -> None:
    good, bad = write(tmp_path / "good.jsonl", *GOOD), write(tmp_path / "bad.jsonl", *BAD)

    assert [program("run", good).returncode, program("run", good, bad).returncode] == [0, 1]
    failed_run = program("run", tmp_path / "missing")
    assert (failed_run.returncode, failed_run.stdout, failed_run.stderr.count("\n")) == (2, "", 1)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    path = write(
        tmp_path / "r.jsonl", begin(), *(failed("create_vm", "EEXIST", i, type=9, out="v") for i in range(9000))
    )
    command = [sys.executable, "-m", "guestmem", "run", "--json", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        assert running.stdout.readline() == "{\n"
        running.stdout.close()
        assert running.stderr.read() == ""
