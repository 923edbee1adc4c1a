"""A program in the lab reads, writes and ends as it would here. The guest is a process of this machine."""

from __future__ import annotations

import os
import signal
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_lab import eventually, fake_machine, labs

from guestmem.lab import programs
from guestmem.lab.errors import SessionFailed
from guestmem.lab.machine import LabMachine
from guestmem.lab.qemu import Hardware


@pytest.fixture(autouse=True)
def booted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Hardware]]:
    """Every lab is a stand-in; the hardware that was asked for."""
    asked: list[Hardware] = []

    def boot(kernel: str, hardware: Hardware) -> LabMachine:
        asked.append(hardware)
        return fake_machine()

    monkeypatch.setattr(programs, "boot", boot)
    yield asked
    assert eventually(lambda: not labs())


class Streams:
    """Files for a program's input and output."""

    def __init__(self, tmp_path: Path, stdin: bytes = b"") -> None:
        (tmp_path / "0").write_bytes(stdin)
        self.files = [(tmp_path / "0").open("rb"), (tmp_path / "1").open("w+b"), (tmp_path / "2").open("w+b")]

    def run(
        self,
        *argv: str,
        limit_s: float = 60,
        environment: dict[str, str] | None = None,
        hardware: Hardware | None = None,
    ) -> int:
        stdin, stdout, stderr = (file.fileno() for file in self.files)
        return programs.exec_(
            argv,
            hardware=hardware,
            environment=environment,
            limit_s=limit_s,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )

    def written(self) -> tuple[bytes, bytes]:
        return os.pread(self.files[1].fileno(), 1 << 24, 0), os.pread(self.files[2].fileno(), 1 << 24, 0)


@pytest.fixture
def streams(tmp_path: Path) -> Iterator[Streams]:
    streams = Streams(tmp_path)
    yield streams
    for file in streams.files:
        file.close()


def test_both_outputs_and_the_exit_code_come_back(streams: Streams) -> None:
    assert streams.run("sh", "-c", "echo out; echo err >&2; exit 7") == 7
    assert streams.written() == (b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("true",), 0),
        (("sh", "-c", "kill -9 $$"), 128 + 9),
        (("sh", "-c", "kill -11 $$"), 128 + 11),
        (("/no/program",), 127),
    ],
)
def test_the_exit_code_is_a_shells(streams: Streams, argv: tuple[str, ...], code: int) -> None:
    assert streams.run(*argv) == code


def test_a_program_that_is_not_there_is_told(streams: Streams) -> None:
    streams.run("/no/program")
    assert b"No such file or directory" in streams.written()[1]


def test_input_of_any_size_passes_whole(tmp_path: Path) -> None:
    data = os.urandom(3_000_001)
    streams = Streams(tmp_path, data)
    assert streams.run("cat") == 0
    assert streams.written() == (data, b"")
    for file in streams.files:
        file.close()


@pytest.mark.parametrize("argv", [("true",), ("sh", "-c", "exec 0<&-; sleep 0.2")])
def test_input_that_nobody_reads_does_no_harm(tmp_path: Path, argv: tuple[str, ...]) -> None:
    streams = Streams(tmp_path, bytes(1_000_000))
    assert streams.run(*argv) == 0
    for file in streams.files:
        file.close()


def test_it_runs_here_and_with_this_environment(streams: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANSWER", "42")
    assert streams.run("sh", "-c", "pwd -P; echo $ANSWER") == 0
    assert streams.written()[0].decode().split() == [str(Path.cwd().resolve()), "42"]


def test_another_environment_is_all_there_is(streams: Streams) -> None:
    assert streams.run("/usr/bin/env", environment={"A": "1"}) == 0
    assert streams.written()[0] == b"A=1\n"


def test_a_program_that_does_not_end_is_killed_at_its_time(streams: Streams) -> None:
    with pytest.raises(SessionFailed, match=r"sleep did not end within 0\.3 s"):
        streams.run("sleep", "1000", limit_s=0.3)


def test_the_lab_of_a_program_has_the_hosts_files(streams: Streams, booted: list[Hardware]) -> None:
    streams.run("true")
    assert [hardware.host_files for hardware in booted] == [True]


# -- a terminal ------------------------------------------------------------------------------------------------------


class Terminal:
    """A terminal; ``keys`` is where its user types and reads."""

    def __init__(self) -> None:
        self.keys, self.line = os.openpty()
        termios.tcsetwinsize(self.line, (31, 97))

    def close(self) -> None:
        os.close(self.keys)
        os.close(self.line)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("SHELL", "/bin/sh")
    terminal = Terminal()
    yield terminal
    terminal.close()


def typed(terminal: Terminal, keys: bytes) -> tuple[int, bytes]:
    """What a shell answers with, and shows, when this is typed at its prompt."""
    codes: list[int] = []
    shown = bytearray()
    work = threading.Thread(target=lambda: codes.append(programs.shell(stdin=terminal.line, stdout=terminal.line)))
    work.start()
    os.set_blocking(terminal.keys, False)
    while work.is_alive():
        work.join(0.01)
        try:
            first = not shown
            shown += os.read(terminal.keys, 65536)
        except BlockingIOError:
            continue
        if first:
            os.write(terminal.keys, keys)
    return codes[0], bytes(shown)


def test_a_shell_has_a_terminal_of_the_same_size(terminal: Terminal) -> None:
    code, shown = typed(terminal, b"stty size; tty; exit 5\n")
    assert code == 5
    assert b"31 97" in shown
    assert b"/dev/pts/" in shown


def test_the_end_of_input_ends_a_shell(terminal: Terminal) -> None:
    assert typed(terminal, b"\x04")[0] == 0


def test_the_escape_key_ends_a_shell_that_hangs(terminal: Terminal) -> None:
    assert typed(terminal, b"\x1d")[0] == 128 + signal.SIGHUP


def test_the_terminal_is_afterwards_as_it_was_before(terminal: Terminal) -> None:
    before = termios.tcgetattr(terminal.line)
    typed(terminal, b"exit\n")
    assert termios.tcgetattr(terminal.line) == before


def test_without_a_terminal_there_is_no_shell() -> None:
    with Path(os.devnull).open() as nothing, pytest.raises(ValueError, match="needs a terminal"):
        programs.shell(stdin=nothing.fileno())
