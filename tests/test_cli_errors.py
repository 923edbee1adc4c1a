"""Bad input ends with one line and exit status 2, a bug in guestmem with 70 and a file that has the traceback."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import pytest
from program import Guestmem

from guestmem.errors import InputError
from guestmem.layout.error import LayoutError
from guestmem.recordings.handles import UnknownHandle
from guestmem.recordings.reader import RecordingError

ROOT = Path(__file__).parent.parent
LAYOUT = ROOT / "examples/layouts/qemu100-q35-10G-memfd.txt"
RECORDING = ROOT / "examples/recordings/v6.18-directed.jsonl.gz"


@pytest.mark.parametrize("error", [ValueError("planted\nin two lines"), KeyError("planted"), AssertionError("planted")])
def test_a_bug_is_not_blamed_on_the_input(
    error: Exception, guestmem_command: Guestmem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def examine() -> None:
        raise error

    monkeypatch.setattr("guestmem.doctor.examine", examine)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    ended = guestmem_command("doctor")

    assert (ended.code, ended.out, len(ended.err.splitlines())) == (70, "", 1)
    said = re.fullmatch(r"guestmem: bug in guestmem: (\w+): .*planted.*; its traceback is in (.+)\n", ended.err)
    assert said is not None, ended.err
    assert said[1] == type(error).__name__
    written = Path(said[2])
    assert written.parent == tmp_path
    assert "in examine" in written.read_text()
    assert "planted" in written.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("check", LAYOUT, "--profile", "v9"), "no profile 'v9'"),
        (("check", LAYOUT, "--profile", "next", "--rule", "nonsense"), "no rule 'nonsense'"),
        (("check", LAYOUT, "--profile", "next", "--page-size", "two"), "not a size: 'two'"),
        (("check", LAYOUT, "--profile", "next", "--page-size", "3M"), "0x300000 is no leaf size of x86-64"),
        (("check", LAYOUT, "--format", "nonsense"), "nonsense"),
        (("check", LAYOUT, "--hva", "pc.ram"), "needed REGION=ADDRESS"),
        (("run", RECORDING, "--profile", "v9"), "no profile 'v9'"),
        (("run", RECORDING, "--on", "nonsense"), "no backend 'nonsense'"),
        (("run", LAYOUT), "qemu100"),
        (("explain", RECORDING, "--sequence", "nonsense"), "no sequence 'nonsense'"),
        (("diff", RECORDING, "--on", "model"), "two backends are compared"),
        (("schema", "nonsense"), "no schema 'nonsense'"),
        (("prove", "races", "--mutation", "nonsense"), "--mutation nonsense"),
        (("lab", "build", "--kernel", "/nowhere/linux"), "no kernel source at /nowhere/linux"),
        (("lab", "exec", "--memory", "much", "true"), "not a size: 'much'"),
    ],
)
def test_what_the_user_gave_is_one_line_and_2(
    arguments: tuple[object, ...], words: str, guestmem_command: Guestmem
) -> None:
    ended = guestmem_command(*arguments)

    assert ended.code == 2, ended.err
    assert [line for line in ended.err.splitlines() if line.startswith("guestmem: ")] == ended.err.splitlines()[-1:]
    assert words in ended.err.splitlines()[-1]


@pytest.mark.parametrize("kind", [LayoutError, RecordingError, UnknownHandle])
def test_errors_about_the_input_are_of_one_kind(kind: type[Exception]) -> None:
    assert issubclass(kind, InputError)
    assert issubclass(InputError, ValueError)
