"""The pages show real output: every command in them is run again and must print what the page shows.

A block of "console measured" shows times, counts or processes that differ from run to run, and is not run again. Pages
made from code are made again and must be the same. Links and paths lead to what exists.
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
TEXTS = [*sorted(ROOT.glob("*.md")), *PAGES[1:], *sorted((ROOT / "examples").rglob("*.md"))]
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
def test_every_command_of_the_pages_prints_what_is_shown(command: str, shown: str, project: Path) -> None:
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


def anchors(page: Path) -> set[str]:
    """The names under which the headings of a page can be linked to."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_a_section_that_exists(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in link:
            path, _, section = link.partition("#")
            target = page.parent / path if path else page
            assert not section or section in anchors(target), link


def test_sections_that_the_code_cites_exist() -> None:
    sources = [path for folder in ("src", "tests", "docs") for path in sorted((ROOT / folder).rglob("*.py"))]
    cited = {cite for path in sources for cite in re.findall(r"docs/([\w-]+\.md)#([\w-]+)", path.read_text())}

    assert [(page, section) for page, section in cited if section not in anchors(ROOT / "docs" / page)] == []


def test_the_modules_that_architecture_names_exist() -> None:
    for row in re.findall(r"^\| (`[^|]+) \|", (ROOT / "ARCHITECTURE.md").read_text(), re.MULTILINE):
        first, *others = re.findall(r"`([\w.]+)`", row)
        package = first.partition(".")[0]
        for name in [first, *(f"{package}.{other}" for other in others)]:
            path = ROOT.joinpath("src", "guestmem", *name.split("."))
            assert path.is_dir() or path.with_suffix(".py").is_file(), name
