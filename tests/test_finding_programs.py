"""Each finding has a program in C that shows it without guestmem, and the page says on which kernels it does."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from guestmem import lab

ROOT = Path(__file__).parent.parent
FINDINGS = ROOT / "examples/findings"
PROGRAMS = sorted(FINDINGS.glob("*.c"))
STATUS = {"no": 0, "holds": 1, "lacks": 2}
needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler (cc) is installed")


def table() -> dict[str, dict[str, str]]:
    """The page's table: what each program found on each kernel."""
    lines = (ROOT / "docs/findings.md").read_text().splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    names = (re.match(r"\[(.*?)\]", row[0]) for row in rows)
    return {name[1]: dict(zip(head[1:], row[1:], strict=True)) for name, row in zip(names, rows, strict=True) if name}


def built(program: Path, directory: Path) -> Path:
    out = directory / program.stem
    subprocess.run(["cc", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o", out, program], check=True)
    return out


def test_every_recording_of_a_kernel_has_a_program_and_a_row() -> None:
    recordings = {path.stem for path in FINDINGS.glob("*.jsonl")}

    assert {path.stem for path in PROGRAMS} == recordings
    assert set(table()) == recordings


def test_the_table_uses_three_words() -> None:
    assert {cell for row in table().values() for cell in row.values()} == STATUS.keys()


@needs_cc
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_it_compiles_without_a_warning(program: Path, tmp_path: Path) -> None:
    assert built(program, tmp_path).stat().st_size > 0


@needs_cc
@pytest.mark.lab
def test_they_find_on_6_12_what_the_page_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the part of /tmp that the lab sees
    for program in PROGRAMS:
        built(program, tmp_path)
    script = "for each in *; do ./$each >/dev/null 2>&1; echo $each $?; done"

    assert lab.exec_(["sh", "-c", script]) == 0

    found = dict(line.split() for line in capfd.readouterr().out.splitlines())
    release = "6.12.117"
    assert found == {name: str(STATUS[row[release]]) for name, row in table().items()}
