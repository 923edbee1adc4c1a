"""The JSON of every command says what it is and of which version."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from program import Guestmem

ROOT = Path(__file__).parent.parent
LAYOUT = ROOT / "examples/layouts/discussion.toml"
FINDING = ROOT / "examples/findings/offset-past-2-63.jsonl"
TRACE = ROOT / "examples/traces/kvm72-story-fprobe.txt"


@pytest.mark.parametrize(
    ("format", "arguments"),
    [
        ("check", ("check", LAYOUT)),
        ("rules", ("rules", LAYOUT)),
        ("plan", ("plan", LAYOUT)),
        ("run", ("run", FINDING)),
        ("explain", ("explain", FINDING, "--op", 2)),
        ("diff", ("diff", FINDING, "--on", "model:v6.18", "--on", "model:v7.2")),
        ("kernels", ("kernels", FINDING, "--on", "model:v6.18", "--on", "model:v7.2")),
        ("fuzz", ("fuzz", "--on", "model:v7.2", "--on", "model:v7.3", "--sequences", 2, "--shrink", 0)),
        ("prove", ("prove", "offset-0", "--rule", "fits-size")),
        ("races", ("prove", "races", "--actors", 2)),
        ("doctor", ("doctor",)),
        ("lab", ("lab", "status")),
        ("trace", ("trace", "report", TRACE)),
    ],
)
def test_each_answer_has_its_format_and_version(
    format: str, arguments: tuple[object, ...], guestmem_command: Guestmem
) -> None:
    ended = guestmem_command(*arguments, "--json")

    assert json.loads(ended.out)["format"] == f"guestmem-{format}/1"
