"""A guest of the lab that does not speak as it should: one line and 1, and its machine is gone."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_lab import children
from program import Guestmem

from guestmem.lab.qemu import Bootable

ROOT = Path(__file__).parent.parent
RECORDING = ROOT / "examples/findings/file-that-nothing-binds.jsonl"
LIAR = Path(__file__).parent / "data/adversary/lying_qemu.py"
Lie = Callable[[str], None]


@pytest.fixture
def lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lie:
    """From now on the lab is one that lies in this way."""
    qemu = tmp_path / "qemu-system-x86_64"
    qemu.write_text(f"#!{sys.executable}\n{LIAR.read_text()}")
    qemu.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr("guestmem.lab.opening.bootable", lambda kernel: Bootable(Path("/vmlinux")))
    monkeypatch.setattr("guestmem.lab.opening.make_image", lambda *what: os.memfd_create("no image"))
    assert shutil.which("qemu-system-x86_64") == str(qemu)
    return lambda mode: monkeypatch.setenv("MODE", mode)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("garbage", "a frame of 2779096485 bytes"),
        ("huge", "a frame of 2147483647 bytes"),
        ("badmsg", "not a reply: MessagePack data is malformed"),
        ("wrongmsg", "it began with Opened"),
        ("badreply", "not a reply"),
        ("noutf8", "not a reply"),
        ("nesting", "not a reply"),
        ("wrongreply", "calls were answered by Opened"),
        ("nostatus", "a process ended with status 0x10000000000"),
        ("short", "1 call had 0 outcomes"),
        ("nested", "not a value of this call: Expected `int`"),
        ("values", "not a value of this call: Expected `int`"),
        ("exits", "not a value of this call: Expected `int`"),
        ("bigint", "not a value of this call: Expected `null`"),
        ("badwork", "not a reply"),
        ("wrongwork", "work was answered by Opened"),
        ("nowork", "no outcomes: MessagePack data is malformed"),
        ("nestedwork", "no outcomes: "),
        ("shortwork", "5 operations had 0 outcomes"),
        ("otherwork", "a CreateVm was answered by a Close"),
        ("unknownsession", "a message of session 99, which was never opened"),
    ],
)
def test_a_lie_is_one_line_and_1(mode: str, words: str, lie: Lie, guestmem_command: Guestmem) -> None:
    before = children()
    lie(mode)
    ended = guestmem_command("run", "--on", "lab", RECORDING)
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"guestmem: the lab's answer cannot be used: {words}")
    assert children() == before


def test_a_bug_that_the_guest_reports_is_a_difference(lie: Lie, guestmem_command: Guestmem) -> None:
    lie("bug")
    ended = guestmem_command("run", "--on", "lab", RECORDING)
    assert (ended.code, ended.err) == (1, "")
    assert "difference" in ended.out
    assert "\x1b" not in ended.out


def test_a_lie_to_a_command_is_one_line_and_1(lie: Lie, guestmem_command: Guestmem) -> None:
    lie("stream")
    ended = guestmem_command("lab", "exec", "true")
    assert (ended.code, ended.out) == (1, "")
    assert ended.err == "guestmem: a command was answered by Output\n"
