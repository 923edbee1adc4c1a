"""The pages show real output: every command in them is run again and must print what stands there.

A block of "console measured" shows times, counts or processes that differ from run to run, and is not run again. Pages
made from code are made again and must be the same.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```console\n\$ (.+?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    pytest.param(command, shown, id=f"{page.name}: {command}")
    for page in PAGES
    for command, shown in BLOCK.findall(page.read_text())
]
MADE = [script for script in sorted((ROOT / "docs").glob("*.py")) if script.stem != "proofs"]  # make prove does that
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory that looks like the project's, so that commands which write files do not write into it."""
    for name in ("examples", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def words_of(command: str, project: Path) -> list[str]:
    """What a shell would run, with this interpreter and this guestmem."""
    words: list[str] = []
    for word in shlex.split(command):
        found = sorted(str(path.relative_to(project)) for path in project.glob(word)) if "*" in word else []
        words += found or [word]
    python = {"python": [sys.executable], "guestmem": [sys.executable, "-m", "guestmem"]}
    return [*python[words[0]], *words[1:]]


def without_versions(text: str) -> str:
    """Another version of the solver must come to the same answers."""
    return re.sub(r"z3 [\d.]+", "z3", text)


@pytest.mark.parametrize(("command", "shown"), BLOCKS)
def test_every_command_of_the_pages_prints_what_stands_there(command: str, shown: str, project: Path) -> None:
    environment = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}

    done = subprocess.run(words_of(command, project), cwd=project, env=environment, capture_output=True, text=True)

    assert done.returncode in (0, 1), done.stderr
    assert without_versions(done.stdout + done.stderr) == without_versions(shown)


@pytest.mark.parametrize("script", MADE, ids=lambda script: script.name)
def test_a_page_made_from_code_is_what_the_code_makes_today(script: Path) -> None:
    made = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert script.with_suffix(".md").read_text() == made
    assert f"$(BIN)/python docs/{script.name} > docs/{script.stem}.md" in MAKEFILE


def test_the_readme_shows_what_make_run_runs_and_how_to_test() -> None:
    readme = (ROOT / "README.md").read_text()
    recipe = re.search(r"^run:[^\n]*\n((?:\t[^\n]*\n)+)", MAKEFILE, re.MULTILINE)

    assert recipe is not None
    assert "make run" in readme
    assert "make test" in readme
    for line in recipe[1].splitlines():
        assert f"$ {line.strip().removeprefix('@$(BIN)/')}\n" in readme
