"""Programs written in C run on the model as on a kernel, and notice what a broken one would do."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from exec_mutants import MUTANTS

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "programs"
COMPILER = shutil.which("gcc") or shutil.which("cc")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
CASES = ("signals", "threads", "forked", "descriptors", "remapped", "limits", "exits", "shared-file", "unserved")
# Which program sees which seeded bug.
WITNESS = {
    "attributes_do_not_unmap": "convert",
    "deleted_slot_stays_mapped": "binding",
    "private_without_a_slot_is_mmio": "convert",
    "overlap_is_not_checked": "binding",
    "index_is_shifted": "binding",
    "hole_does_not_unmap": "punch",
}

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="no C compiler here"),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="the extra exec is not installed"),
]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with every program, compiled; convert is there as a static one too."""
    directory = tmp_path_factory.mktemp("programs")
    sources = [*EXAMPLES.glob("*.c"), *(ROOT / "tests" / "programs").glob("*.c")]
    assert len(sources) >= 4
    assert COMPILER
    for source in sources:
        _compile(source, directory / source.stem)
    _compile(EXAMPLES / "convert.c", directory / "convert-static", "-static")
    return directory


def _compile(source: Path, program: Path, *flags: str) -> None:
    assert COMPILER
    warnings = ("-Wall", "-Wextra", "-Werror")
    subprocess.run([COMPILER, *warnings, "-O1", "-pthread", *flags, f"-I{EXAMPLES}", "-o", program, source], check=True)


def guestmem(*arguments: str | Path, script: tuple[str, ...] = ("-m", "guestmem", "exec")) -> tuple[int, str, str]:
    """Exit status, stdout, stderr."""
    command = [sys.executable, *script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["convert", "convert-static", "punch", "binding"])
def test_the_examples_pass(programs: Path, name: str) -> None:
    assert guestmem("--", programs / name) == (0, "", "")


def test_a_profile_answers_as_its_kernel(programs: Path) -> None:
    einval, eexist = "22", "17"

    assert guestmem("--profile", "v6.12", "--", programs / "binding", einval)[0] == 0
    code, _, err = guestmem("--profile", "v6.12", "--", programs / "binding", eexist)
    assert code == 1
    assert "wanted errno 17" in err


@pytest.mark.parametrize("case", [case for case in CASES if case != "unserved"])
def test_a_program_may(programs: Path, case: str) -> None:
    assert guestmem("--", programs / "robust", case) == (0, "", "")


def test_what_is_not_served_is_named_and_fails_like_an_unknown_ioctl(programs: Path) -> None:
    code, _, err = guestmem("--", programs / "robust", "unserved")

    assert code == 0
    assert "guestmem: KVM_INTERRUPT (0x4004ae86) on a vCPU is not served" in err


def test_strict_ends_the_program_there(programs: Path) -> None:
    assert guestmem("--strict", "--", programs / "robust", "unserved")[0] == 128 + 9


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_seeded_bug_of_the_model_is_noticed(programs: Path, mutant: str) -> None:
    code, _, err = guestmem(
        mutant, programs / WITNESS[mutant], script=(str(Path(__file__).parent / "exec_mutants.py"),)
    )

    assert code == 1, err
    assert ".c:" in err or "vmm.h:" in err


def test_the_exit_status_is_the_program_s() -> None:
    assert guestmem("--", "sh", "-c", "exit 7")[0] == 7
    assert guestmem("--", "sh", "-c", "kill -TERM $$")[0] == 128 + 15
    assert guestmem("--", "/nowhere/at/all")[0] == 127


def test_a_shell_may_start_the_program_and_output_is_its_own(programs: Path) -> None:
    code, out, err = guestmem("--", "sh", "-c", f"'{programs}/convert' && '{programs}/punch' && echo both")

    assert (code, out, err) == (0, "both\n", "")


def test_statistics_tell_what_the_memory_went_through(programs: Path) -> None:
    code, _, err = guestmem("--stats", "--", programs / "punch")

    assert code == 0
    assert "KVM_RUN" in err
    assert "leaves unmapped:" in err


def test_a_recording_of_a_program_agrees_with_the_model(programs: Path, tmp_path: Path) -> None:
    recording = tmp_path / "calls.jsonl"
    code, _, err = guestmem("--record", recording, "--", programs / "binding")

    assert code == 0
    assert "KVM_RUN 5" in err
    code, out, _ = guestmem(recording, script=("-m", "guestmem", "run"))
    assert code == 0
    assert "0 differences" in out
    lines = recording.read_text().splitlines()
    assert sum('"errno":"EEXIST"' in line for line in lines) == 2
    assert sum('"op":"create_guest_memfd"' in line for line in lines) == 4


def test_each_process_of_a_program_is_a_sequence_of_its_own(programs: Path, tmp_path: Path) -> None:
    recording = tmp_path / "calls.jsonl.gz"

    assert guestmem("--record", recording, "--", programs / "robust", "forked")[0] == 0
    code, out, _ = guestmem(recording, script=("-m", "guestmem", "run"))
    assert code == 0
    assert "2 sequences" in out


def test_a_refused_call_is_explained_with_what_other_kernels_answer(programs: Path) -> None:
    code, _, err = guestmem("--explain", "--", programs / "binding")
    lines = err.splitlines()
    overlap = next(number for number, line in enumerate(lines) if line.endswith("EEXIST [binding-free]"))

    assert code == 0
    assert lines[overlap + 2].strip() == "elsewhere: v6.12 EINVAL"


def test_a_page_size_needs_a_profile_that_has_it() -> None:
    code, _, err = guestmem("--page-size", "2M", "--", "true")

    assert code == 2
    assert err == "guestmem: --page-size needs a profile whose guest_memfd has large pages: --profile next\n"


def test_large_pages_come_to_a_program_that_knows_nothing_of_them(programs: Path) -> None:
    """convert makes a file of 2 MiB, all private at first, then one page of it shared."""
    code, _, err = guestmem(
        "--profile", "next", "--in-place", "off", "--page-size", "2M", "--stats", "--", programs / "convert"
    )

    assert code == 0
    assert "of 2M" in err


def test_a_killed_supervisor_takes_the_program_along() -> None:
    command = [sys.executable, "-m", "guestmem", "exec", "--", "sh", "-c", "echo $$; sleep 60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as supervisor:
        assert supervisor.stdout
        program = int(supervisor.stdout.readline())
        supervisor.kill()
        supervisor.wait()
    _wait_for_end(program)


def _wait_for_end(pid: int) -> None:
    import time

    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")
