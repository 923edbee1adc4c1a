"""What the console script prints: to readers that go away, to full disks, and with file names of any bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from program import Guestmem

from guestmem.errors import KvmError

ROOT = Path(__file__).parent.parent
LAYOUT = ROOT / "examples/layouts/discussion.toml"
RECORDING = ROOT / "examples/findings/file-that-nothing-binds.jsonl"
PATIENCE_S = 60.0
COMMANDS = {
    "check": ["check", str(LAYOUT)],  # by rich
    "check --json": ["check", "--json", str(LAYOUT)],  # by typer
    "run": ["run", str(RECORDING)],
    "plan": ["plan", str(LAYOUT)],
}


def guestmem(words: list[str | bytes], stdout: int) -> tuple[int, bytes]:
    """Its status and what it said on stderr."""
    command = [sys.executable, "-m", "guestmem", *words]
    ended = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, timeout=PATIENCE_S)
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_goes_away_is_141_and_no_word(name: str) -> None:
    out, into = os.pipe()
    os.close(out)
    assert guestmem([*COMMANDS[name]], into) == (141, b"")
    os.close(into)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_output_that_is_full_is_one_line_and_2(name: str) -> None:
    with Path("/dev/full").open("wb") as full:
        assert guestmem([*COMMANDS[name]], full.fileno()) == (2, b"guestmem: No space left on device\n")


def test_a_refusal_that_nobody_expected_is_a_bug(
    guestmem_command: Guestmem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def examine() -> None:
        raise KvmError(22, "planted")

    monkeypatch.setattr("guestmem.doctor.examine", examine)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    ended = guestmem_command("doctor")

    assert (ended.code, ended.out) == (70, "")
    assert ended.err.startswith("guestmem: bug in guestmem: KvmError: EINVAL planted; its traceback is in ")


NO_UTF8 = b"na\xffme\x1b[2J"


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A directory whose name is no UTF-8 and clears a terminal, with a layout, a broken layout and a recording."""
    directory = tmp_path / os.fsdecode(NO_UTF8)
    directory.mkdir()
    (directory / "l.toml").write_bytes(LAYOUT.read_bytes())
    (directory / "r.jsonl").write_bytes(RECORDING.read_bytes())
    (directory / "broken.toml").write_text("format = 3\n")
    return directory


@pytest.mark.parametrize(
    "words",
    [
        ["check", "l.toml"],
        ["check", "--json", "l.toml"],
        ["check", "--sarif", "l.toml"],
        ["check", "--html", "page.html", "l.toml"],
        ["rules", "l.toml"],
        ["rules", "--json", "l.toml"],
        ["rules", "--markdown", "l.toml"],
        ["plan", "l.toml"],
        ["plan", "--json", "l.toml"],
        ["run", "r.jsonl"],
        ["run", "--json", "r.jsonl"],
        ["run", "--record", "seen.jsonl.gz", "r.jsonl"],
        ["run", "--profile", "v7.2", "--on", "model", "r.jsonl"],
        ["diff", "r.jsonl", "--on", "model:v6.12", "--on", "model:v7.2"],
        ["diff", "r.jsonl", "--json", "--on", "model:v6.12", "--on", "model:v7.2"],
        ["explain", "r.jsonl"],
    ],
    ids=" ".join,
)
def test_a_file_name_that_is_no_utf8_is_read_and_printed(words: list[str], odd: Path) -> None:
    named = [str(odd / word) if "." in word and word[0] != "v" and ":" not in word else word for word in words]
    ended = subprocess.run(
        [sys.executable, "-m", "guestmem", *named], capture_output=True, timeout=PATIENCE_S, cwd=odd.parent
    )
    assert ended.returncode in (0, 1), ended.stderr
    assert b"bug" not in ended.stderr
    text = ended.stdout.decode("utf-8")
    if "--json" in words or "--sarif" in words:
        json.loads(text)
    assert "\x1b" not in text
    assert b"\x1b" not in ended.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["check", "missing.toml"],
        ["check", "broken.toml"],
        ["run", "missing.jsonl"],
        ["run", "broken.toml"],
        ["run", "--record", "missing/seen", "r.jsonl"],
        ["lab", "build", "--kernel", "missing.tar"],
        ["lab", "build", "--kernel", "l.toml"],
        ["run", "--on", os.fsdecode(NO_UTF8), "r.jsonl"],
        ["check", "qmp:s.ock"],
    ],
    ids=lambda words: " ".join(words).encode("utf-8", "replace").decode(),
)
def test_a_file_name_that_is_no_utf8_is_refused_in_one_line(words: list[str], odd: Path) -> None:
    for directory in ("", f"{odd}/"):
        command = [sys.executable, "-m", "guestmem", *words[:-1], directory + words[-1]]
        environment = {**os.environ, "GUESTMEM_CACHE": str(odd / "cache")}
        ended = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, cwd=odd, env=environment)
        *stages, line = ended.stderr.decode().splitlines()
        assert (ended.returncode, ended.stdout, stages in ([], ["fetch"])) == (2, b"", True), ended.stderr
        assert line.startswith("guestmem: ")
        assert "\x1b" not in line
