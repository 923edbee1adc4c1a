"""The recordings of restrictedmem that ship: what mails and selftests of 2022 and 2023 say, written down by hand.

No kernel answered them. Their outcomes are what the sources say (docs/restrictedmem.md), and the model must agree.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem.model.profiles import HISTORY
from guestmem.recordings.reader import read_sequences
from guestmem.recordings.run import run_recording
from guestmem.targets import target_named

ROOT = Path(__file__).parent.parent
STORY = ROOT / "examples/recordings/restrictedmem.jsonl.gz"
BUGS = sorted((ROOT / "examples/findings/2023").glob("*.jsonl"))
PAGE = (ROOT / "docs/restrictedmem.md").read_text()
# The bugs that the default system is without.
MENDED = {"neighbours-collide", "forgotten-offset", "retried-for-ever", "hole-below-the-offset", "or-of-hva-and-offset"}


@pytest.mark.parametrize("path", [STORY, *BUGS], ids=lambda path: path.name.partition(".")[0])
def test_the_model_answers_as_the_sources_say(path: Path) -> None:
    report = run_recording(path, target_named("model"))

    assert [(difference.line, difference.recorded, difference.got) for difference in report.differences] == []
    assert report.agreed == report.operations == report.compared > 0


@pytest.mark.parametrize("path", BUGS, ids=lambda path: path.stem)
def test_each_bug_is_under_its_revision_and_on_the_page(path: Path) -> None:
    [sequence] = read_sequences(path)

    assert sequence.begin.profile in HISTORY
    assert f"| {path.stem} |" in PAGE


@pytest.mark.parametrize("name", sorted(MENDED))
def test_the_system_of_the_mail_is_without_what_was_mended(name: str) -> None:
    path = ROOT / f"examples/findings/2023/{name}.jsonl"

    assert run_recording(path, target_named("model", "restrictedmem")).differences


def test_what_came_of_it_answers_none_of_it() -> None:
    report = run_recording(STORY, target_named("model", "v7.3"))

    assert len(report.differences) >= report.sequences
