"""What each kernel answers: rows where they differ, compared in one state, and the page that was made in the lab."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from program import Guestmem
from recordings import begin, gmem, vm, write

from guestmem.recordings.matrix import Matrix, behaviour
from guestmem.report.kernels import kernels_markdown
from guestmem.targets import target_named

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "kernels.md").read_text()
MEASURED = ("lab:6.12", "model:v6.18", "lab:7.2", "lab:7.3")
MODELS = ("model:v6.12", "model:v6.18", "model:v7.2", "model:v7.3")
RECORDINGS = [ROOT / f"examples/recordings/{name}-directed.jsonl.gz" for name in ("v6.12", "v6.18", "v7.3")]


def matrix(names: Sequence[str], *paths: Path) -> Matrix:
    targets = [target_named(name) for name in names]
    return behaviour(paths, targets, [target_named(name) for name in MODELS])


def rows(page: str) -> list[str]:
    """The page's tables."""
    return [line for line in page.splitlines() if line.startswith(("|", "#"))]


def test_the_page_that_was_measured_in_the_lab_is_what_the_models_answer() -> None:
    page = kernels_markdown(matrix(MODELS, *RECORDINGS), "")
    for model, measured in zip(MODELS, MEASURED, strict=True):
        page = page.replace(model, measured)

    assert rows(PAGE) == rows(page)


def test_a_call_that_all_answer_alike_has_no_row(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", begin(), vm(0, type=0), gmem(1))

    assert matrix(("model:v7.2", "model:v7.3"), path).rows == ()


def test_calls_of_one_kind_are_one_row_with_the_first_example_and_their_number(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", begin(), vm(0, type=1), vm(1, type=1), vm(2, type=0))

    [row] = matrix(("model:v6.18", "model:v7.2", "model:v7.3"), path).rows

    assert (row.op, row.check, row.answers, row.index) == ("create_vm", "vm-type-offered", ("EINVAL", "ok", "ok"), 0)
    assert (row.rule, row.count) == ("the VM type must be one that the kernel offers", 1)


def test_a_kernel_in_another_state_is_not_asked_any_more(tmp_path: Path) -> None:
    capability = {"op": "check_extension", "seq": "s", "i": 1, "on": "kvm", "cap": 244}
    path = write(tmp_path / "r.jsonl", begin(), vm(0, type=1), capability)

    found = matrix(("model:v6.12", "model:v6.18", "model:v7.3"), path)

    assert [(row.op, row.answers) for row in found.rows] == [
        ("check_extension", ("0", "", "3")),
        ("create_vm", ("ok", "EINVAL", "ok")),
    ]


def test_kernels_that_refuse_with_other_errnos_stay_in_one_state(tmp_path: Path) -> None:
    with closing(target_named("model:v6.12")):
        found = matrix(("model:v6.12", "model:v7.2"), ROOT / "examples/recordings/v6.12-directed.jsonl.gz")

    overlaps = [row for row in found.rows if row.check == "binding-free"]
    assert [row.answers for row in overlaps] == [("EINVAL", "EEXIST")]


def test_the_command_prints_a_table_json_and_a_page(guestmem_command: Guestmem, tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", begin(), vm(0, type=1))
    options = ("kernels", "--on", "model:v6.18", "--on", "model:v7.3", path)

    text, as_json = guestmem_command(*options), guestmem_command(*options, "--json")

    assert (text.code, as_json.code) == (0, 0)
    assert "vm-type-offered" in text.out
    assert json.loads(as_json.out)["rows"][0]["answers"] == {"model:v6.18": "EINVAL", "model:v7.3": "ok"}
    assert "## create_vm" in guestmem_command(*options, "--markdown").out


@pytest.mark.parametrize("on", [(), ("--on", "model:v6.12")])
def test_one_kernel_is_nothing_to_compare(guestmem_command: Guestmem, on: tuple[str, ...]) -> None:
    ended = guestmem_command("kernels", *on, RECORDINGS[0])

    assert ended.code == 2
    assert len(ended.err.splitlines()) == 1
