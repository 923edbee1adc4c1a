"""ctrl-C and other signals in the middle of a command: the status that shells give them, and nothing is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fake_lab import is_running
from recordings import begin, line, write

PATIENCE_S = 30.0
LIAR = Path(__file__).parent / "data/adversary/lying_qemu.py"


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

    def interrupted_when(
        self, ready: Callable[[int], bool], number: signal.Signals = signal.SIGINT, *, alone: bool = False
    ) -> tuple[int, str, str]:
        """Press ctrl-C, or send another signal to all of it, or to the first process alone, once it has come that far.

        How it ended, and what it said on stdout and stderr.
        """
        end = time.monotonic() + PATIENCE_S
        while not ready(self.process.pid):
            assert self.process.poll() is None, "it ended before it came that far"
            assert time.monotonic() < end, "it never came that far"
            time.sleep(0.01)
        (os.kill if alone else os.killpg)(self.process.pid, number)
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


STOPS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


@STOPS
def test_run_leaves_no_half_recording(
    started: Callable[..., Program], long_recording: Path, tmp_path: Path, number: signal.Signals
) -> None:
    program = started("run", "--record", "seen.jsonl", long_recording.name)

    code, out, err = program.interrupted_when(lambda pid: any(tmp_path.glob(".guestmem-*")), number)

    assert (code, out) == (128 + number, "")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [long_recording]


@STOPS
def test_diff_ends(started: Callable[..., Program], long_recording: Path, number: signal.Signals) -> None:
    program = started("diff", long_recording, "--on", "model:v6.12", "--on", "model:v7.2")

    code, out, err = program.interrupted_when(has_open(long_recording), number)

    assert (code, out) == (128 + number, "")
    assert "Traceback" not in err
    assert not program.somebody_is_left()


@STOPS
@pytest.mark.parametrize("alone", [False, True])
def test_fuzz_says_how_far_it_came_and_its_child_is_gone(
    started: Callable[..., Program], tmp_path: Path, number: signal.Signals, alone: bool
) -> None:
    program = started("fuzz", "--on", "model:v6.12", "--on", "model:v7.2", "--sequences", 10**6, "--out", "found")

    code, out, err = program.interrupted_when(has_a_child, number, alone=alone)

    assert code == 128 + number
    assert re.search(r" sequences? on model:v6\.12 and model:v7\.2, ", out), out
    assert err == ""
    assert not program.somebody_is_left()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


IN_A_LAB = """
import os, sys
from pathlib import Path
from guestmem.lab import opening
from guestmem.lab.qemu import Bootable

opening.bootable = lambda kernel: Bootable(Path("/vmlinux"))
opening.make_image = lambda *what: os.memfd_create("no image")
from guestmem.cli import main
sys.argv = ["guestmem", "lab", "exec", "true"]
main()
"""


@STOPS
@pytest.mark.parametrize("command", ["lab", "check"])
def test_the_qemu_that_it_started_is_gone(command: str, tmp_path: Path, number: signal.Signals) -> None:
    """A stand-in, which says where it is and then nothing."""
    tools, temporary = tmp_path / "tools", tmp_path / "temporary"
    tools.mkdir()
    temporary.mkdir()
    qemu = tools / "qemu-system-x86_64"
    source = LIAR.read_text() if command == "lab" else "import time\ntime.sleep(1000)\n"
    qemu.write_text(
        f"#!{sys.executable}\nfrom os import getpid\nopen('{tmp_path}/pid', 'w').write(str(getpid()))\n{source}"
    )
    qemu.chmod(0o755)
    words = ["-c", IN_A_LAB] if command == "lab" else ["-m", "guestmem", "check", "qemu:-m 1G"]
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "TMPDIR": str(temporary), "MODE": "silent"}
    with subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + PATIENCE_S
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, err) == (128 + number, b"")
    assert not is_running(int((tmp_path / "pid").read_text()))
    assert list(temporary.iterdir()) == []


SWALLOWING = """
import time
from guestmem import cli

def command(**_):
    for _ in range(3):
        try:
            print("here", flush=True)
            time.sleep(60)
        except BaseException:
            pass
    time.sleep(60)

cli.app = command
cli.main()
"""


def test_a_signal_whose_exception_is_swallowed_on_its_way_is_raised_again() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SWALLOWING], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.read(5)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (128 + signal.SIGTERM, b"here\n" * 2, b"")


def test_a_signal_that_was_ignored_at_the_start_stays_so(tmp_path: Path, long_recording: Path) -> None:
    command = [sys.executable, "-m", "guestmem", "run", str(long_recording)]
    with subprocess.Popen(["nohup", *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + PATIENCE_S
        while not has_open(long_recording)(process.pid):
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE_S) == 0


def test_a_question_that_takes_long_ends_with_its_workers(started: Callable[..., Program]) -> None:
    program = started("prove", "--jobs", "2")

    def two_workers(pid: int) -> bool:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum("libz3" in Path(f"/proc/{child}/maps").read_text() for child in children) == 2

    began = time.monotonic()
    code, out, err = program.interrupted_when(two_workers, signal.SIGTERM, alone=True)

    assert (code, out) == (128 + signal.SIGTERM, "")
    assert "Traceback" not in err
    assert time.monotonic() - began < 15
    end = time.monotonic() + PATIENCE_S
    while program.somebody_is_left():
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.01)


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
