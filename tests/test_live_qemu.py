"""Live QEMUs: asked over QMP, started paused for the question, and gone afterwards whatever happened."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from guestmem.cli import app
from guestmem.errors import BackendUnavailable
from guestmem.layout import LayoutError, live
from guestmem.layout.live import paused_qemu, read_live

needs_qemu = pytest.mark.skipif(
    shutil.which("qemu-system-x86_64") is None, reason="qemu-system-x86_64 is not installed"
)
SMALL = "-machine microvm -m 64M -nodefaults"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Every process that the code under test starts."""
    seen: list[subprocess.Popen[bytes]] = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            seen.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return seen


@needs_qemu
def test_a_paused_qemu_tells_its_slots_and_is_gone(started: list[subprocess.Popen[bytes]]) -> None:
    (found,) = read_live(f"qemu:{SMALL}")
    ram = [(slot.gpa, slot.size) for slot in found.slots if slot.region == "microvm.ram"]
    assert ram == [(0, 0xF0000), (0x100000, 63 << 20)]
    assert all(slot.hva is not None for slot in found.slots if slot.region == "microvm.ram")
    assert [process.returncode is not None for process in started] == [True]


@needs_qemu
def test_a_running_qemu_is_asked_by_its_socket_and_goes_on_running(started: list[subprocess.Popen[bytes]]) -> None:
    with paused_qemu("test", SMALL) as path:
        assert read_live(f"qmp:{path}")[0].slots == read_live(f"qmp:{path}")[0].slots
        assert started[0].poll() is None
    assert started[0].returncode is not None
    assert not path.parent.exists()


@needs_qemu
def test_a_qemu_is_ended_when_the_question_fails(started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(KeyboardInterrupt), paused_qemu("test", SMALL):
        raise KeyboardInterrupt
    assert started[0].returncode is not None


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
(where,) = [word for word in sys.argv if word.startswith("unix:")]
open(where[5:].partition(",")[0], "w").close()
time.sleep(60)
"""


def test_a_qemu_that_ignores_polite_signals_is_killed(
    started: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_END_S", 0.3)
    monkeypatch.setattr(live, "_command", lambda source, arguments: ([sys.executable, "-c", STUBBORN], []))
    with paused_qemu("test", SMALL):
        assert started[0].poll() is None
    assert started[0].returncode == -signal.SIGKILL


@needs_qemu
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_a_qemu_does_not_outlive_a_killed_guestmem(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from guestmem.layout.live import paused_qemu\n"
        f"with paused_qemu('t', {SMALL!r}) as path:\n"
        "    print(path, flush=True)\n"
        "    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    path = Path(parent.stdout.readline().strip())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while _answers(path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _answers(path)
    shutil.rmtree(path.parent)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


@needs_qemu
@pytest.mark.parametrize("word", ["-name", "-drive", "-device", "-append"])
def test_a_last_word_that_wants_a_value_does_not_take_ours(word: str, started: list[subprocess.Popen[bytes]]) -> None:
    with pytest.raises(LayoutError, match=f"QEMU ended: .*{word}: requires an argument"):
        read_live(f"qemu:-accel tcg -m 64M {word}")
    assert started[0].returncode == 1


@needs_qemu
def test_a_guest_that_runs_is_not_asked_and_is_gone(
    started: list[subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(live, "_monitor", lambda client, command: asked.append(command))
    wrapper = tmp_path / "qemu-system-wrapped"
    wrapper.write_text('#!/bin/bash\nexec qemu-system-x86_64 "${@/#-S/-no-reboot}"\n')
    wrapper.chmod(0o755)
    with pytest.raises(LayoutError, match="the guest must not run, and it runs although -S was given"):
        read_live(f"qemu:{wrapper} {SMALL} -accel tcg")
    assert asked == []
    assert [process.returncode is not None for process in started] == [True]


@needs_qemu
def test_what_qemu_refuses_is_one_line() -> None:
    with pytest.raises(LayoutError, match=r"QEMU ended: .*unsupported machine type") as refused:
        read_live("qemu:-machine nonsense")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("source", "wanted"), [("qemu:-m 'half", "needed QEMU's arguments"), ("qmp:/nonexistent/socket", "no QMP at this")]
)
def test_a_live_source_that_cannot_be_asked_is_one_line(source: str, wanted: str) -> None:
    with pytest.raises(LayoutError, match=wanted):
        read_live(source)


@needs_qemu
@pytest.mark.parametrize("option", ["-daemonize", "--daemonize"])
def test_a_qemu_that_would_leave_is_not_started(started: list[subprocess.Popen[bytes]], option: str) -> None:
    with pytest.raises(LayoutError, match="cannot be ended for certain"):
        read_live(f"qemu:{option}")
    assert started == []


@needs_qemu
def test_an_accelerator_that_is_given_is_the_only_one(started: list[subprocess.Popen[bytes]]) -> None:
    read_live(f"qemu:{SMALL} --accel tcg")
    assert "kvm" not in str(started[0].args)


@needs_qemu
def test_what_qemu_says_when_it_ends_after_it_opened_its_socket_is_told(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_bytes(b"no kernel")
    with pytest.raises(LayoutError, match=r"QEMU ended: .*kernel"):
        read_live(f"qemu:-m 64M -kernel {tmp_path}/kernel")


def test_a_missing_qemu_and_a_missing_library_end_with_4(monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner().invoke(app, ["check", "qemu:qemu-system-nowhere -m 1G"])
    assert (result.exit_code, "is not installed" in result.stderr) == (4, True)
    monkeypatch.setitem(sys.modules, "qemu.qmp", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'guestmem\[qemu\]'"):
        read_live("qmp:/nonexistent")


GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}\n'


@contextmanager
def speaker(path: Path, answer: bytes) -> Iterator[None]:
    """A QMP server that negotiates as QEMU does and answers what it is asked then with these bytes."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client, suppress(OSError):
                client.sendall(GREETING)
                client.recv(1 << 16)
                client.sendall(b'{"return": {}}\n')
                client.recv(1 << 16)
                client.sendall(answer)
                while client.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5)


@pytest.mark.parametrize(
    "answer",
    [
        b'{"return": "' + b"x" * (11 << 20) + b'"}\n',
        b"[" * 200_000 + b"\n",
        b'{"return": ' + b"9" * 6000 + b"}\n",
        b'{"return": "\xff"}\n',
        b'{"return": "not asked for", "id": "x"}\n',
        b"\n",
        b"3\n",
        b'{"error": 3}\n',
        b'{"event": {}}\n',
    ],
    ids=["long", "deep", "digits", "no UTF-8", "another id", "empty", "number", "error", "event"],
)
def test_an_answer_that_is_no_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(live, "ANSWER_S", 3.0)
    path = tmp_path / "s"
    with speaker(path, answer), pytest.raises(LayoutError) as refused:
        read_live(f"qmp:{path}")
    assert "\n" not in str(refused.value)


@contextmanager
def server(path: Path, answer: bytes) -> Iterator[None]:
    """Something on a socket that is no QEMU: says ``answer`` and then nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.sendall(answer)
                while client.recv(1 << 16):
                    pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield
        thread.join(5)


@pytest.mark.parametrize(
    "answer", [b"", b"hello\n", b'{"QMP": {}}\n', b'{"QMP": 3}\r\n{"return": {}}\r\n', b"\xff" * 5000]
)
def test_what_is_no_qemu_is_given_up_on_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(live, "ANSWER_S", 0.5)
    path = tmp_path / "s"
    with server(path, answer), pytest.raises(LayoutError) as refused:
        read_live(f"qmp:{path}")
    assert "\n" not in str(refused.value)
