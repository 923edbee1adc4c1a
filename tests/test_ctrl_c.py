"""ctrl-C in the middle of run, diff and fuzz: the status that shells give it, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from recordings import begin, line, write

PATIENCE_S = 30.0


class Program:
    """guestmem in a process group of its own, as a terminal starts it."""

    def __init__(self, directory: Path, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "guestmem", *map(str, arguments)],
            cwd=directory,
            start_new_session=True,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def interrupted_when(self, ready: Callable[[int], bool]) -> tuple[int, str, str]:
        """Press ctrl-C once it has come that far; how it ended, and what it said on stdout and stderr."""
        end = time.monotonic() + PATIENCE_S
        while not ready(self.process.pid):
            assert self.process.poll() is None, "it ended before it came that far"
            assert time.monotonic() < end, "it never came that far"
            time.sleep(0.01)
        os.killpg(self.process.pid, signal.SIGINT)
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err

    def somebody_is_left(self) -> bool:
        """Whether a process of the group still lives."""
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def end(self) -> None:
        """Whatever a failed test left."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def start(*arguments: object) -> Program:
        programs.append(Program(tmp_path, *arguments))
        return programs[-1]

    yield start
    for program in programs:
        program.end()


@pytest.fixture
def long_recording(tmp_path: Path) -> Path:
    """One that takes seconds."""
    sequences = ((begin(seq=f"s{n}"), line("create_vm", seq=f"s{n}", type=1, out="vm0")) for n in range(30_000))
    return write(tmp_path / "long.jsonl", *(each for sequence in sequences for each in sequence))


def has_open(path: Path) -> Callable[[int], bool]:
    def ready(pid: int) -> bool:
        with suppress(FileNotFoundError):
            return any(fd.readlink() == path for fd in Path(f"/proc/{pid}/fd").iterdir())
        return False

    return ready


def has_a_child(pid: int) -> bool:
    return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def test_run_leaves_no_half_recording(started: Callable[..., Program], long_recording: Path, tmp_path: Path) -> None:
    program = started("run", "--record", "seen.jsonl", long_recording.name)

    code, out, err = program.interrupted_when(lambda pid: any(tmp_path.glob(".seen.jsonl.*")))

    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [long_recording]


def test_diff_ends(started: Callable[..., Program], long_recording: Path) -> None:
    program = started("diff", long_recording, "--on", "model:v6.12", "--on", "model:v7.2")

    code, out, err = program.interrupted_when(has_open(long_recording))

    assert (code, out) == (130, "")
    assert "Traceback" not in err
    assert not program.somebody_is_left()


def test_fuzz_says_how_far_it_came_and_its_child_is_gone(started: Callable[..., Program], tmp_path: Path) -> None:
    program = started("fuzz", "--on", "model:v6.12", "--on", "model:v7.2", "--sequences", 10**6, "--out", "found")

    code, out, err = program.interrupted_when(has_a_child)

    assert code == 130
    assert " sequences on model:v6.12 and model:v7.2, " in out
    assert err == ""
    assert not program.somebody_is_left()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_child_of_a_killed_fuzz_ends_by_itself(started: Callable[..., Program]) -> None:
    program = started("fuzz", "--on", "model:v6.18", "--on", "model:v6.18", "--sequences", 10**6)

    def killed(pid: int) -> bool:
        if has_a_child(pid):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    code, _, _ = program.interrupted_when(killed)

    assert code == -signal.SIGKILL
    end = time.monotonic() + PATIENCE_S
    while program.somebody_is_left():
        assert time.monotonic() < end, "the child outlives its parent"
        time.sleep(0.01)


INTERRUPTED_IN_THE_FORK = """
import os, signal
from guestmem.recordings.child import messages

os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGINT))
print(*messages(lambda: [b"one", b"two"], limit_s=20))
print(*signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_a_child_that_is_interrupted_in_the_fork_says_nothing_and_goes_on() -> None:
    ended = subprocess.run([sys.executable, "-c", INTERRUPTED_IN_THE_FORK], capture_output=True, text=True, check=True)

    assert (ended.stdout, ended.stderr) == ("b'one' b'two'\n\n", "")
