"""Whatever source, tests and pages cite is in the repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("src", "tests", "docs", "examples", "benchmarks", "fuzz_readers")
TEXTS = sorted(
    path
    for path in [
        *ROOT.glob("*.md"),
        *(each for folder in FOLDERS for each in (ROOT / folder).rglob("*")),
        ROOT / "Makefile",
    ]
    if path.suffix in {".py", ".md", ""} and path.is_file() and path != Path(__file__) and "layouts" not in path.parts
)
# Documents that the project's authors worked from: their content is in docs/, their names mean nothing to a reader.
ELSEWHERE = re.compile(r"\b(SEMANTICS|TRANSCRIPT|HOUSE|DESIGN|STYLE)\b(?!_)")
PAGE = re.compile(r"[\w./-]*\b[A-Za-z][\w-]*\.md\b")
IN_A_FOLDER = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./-]*[\w/](?![\w*{{])")
MADE = {"fuzz_readers/found/"}  # folders that programs make
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def dead(path: Path, text: str) -> Iterator[str]:
    """The citations in a text that lead nowhere."""
    yield from (match[0] for match in ELSEWHERE.finditer(text))
    for match in [*PAGE.finditer(text), *IN_A_FOLDER.finditer(text)]:
        if match[0] not in MADE and not any((base / match[0]).exists() for base in (ROOT, path.parent, ROOT / "docs")):
            yield match[0]
    if path.suffix == ".md":
        yield from (match[1] for match in LINK.finditer(text) if not (path.parent / match[1]).exists())


def test_there_are_texts() -> None:
    assert {"README.md", "src/guestmem/cli/run.py", "docs/races.py"} <= {str(path.relative_to(ROOT)) for path in TEXTS}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_citation_leads_somewhere(path: Path) -> None:
    assert list(dead(path, path.read_text())) == []


@pytest.mark.parametrize(
    "text",
    [
        "as SEMANTICS says (6.6)",
        "(TRANSCRIPT)",
        "see nowhere.md",
        "docs/nowhere.md has it",
        "recordings are in tests/nowhere/",
        "guestmem run examples/recordings/nowhere.jsonl",
        "[a page](nowhere.md)",
    ],
)
def test_a_dead_citation_is_seen(text: str) -> None:
    assert list(dead(ROOT / "docs" / "races.md", text))


@pytest.mark.parametrize(
    "text", ["docs/races.md", "[README](../README.md)", "tests/data/", "`examples/*.py`", "see races.md"]
)
def test_a_citation_that_leads_somewhere_is_none(text: str) -> None:
    assert list(dead(ROOT / "docs" / "races.md", text)) == []
