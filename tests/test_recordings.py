"""The recordings of real kernels that ship as examples: every outcome of theirs is the model's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from recordings import SAMPLES

from guestmem.recordings.run import run_recording
from guestmem.targets import target_named

# What a count of the files themselves gives: lines that are no begin, a guest touch as an operation of its own.
MARKED = ("anomaly", "livelock")


def operations_of(path: Path) -> tuple[int, int]:
    """How many sequences and operations a recording has, counted without the package."""
    sequences = operations = 0
    with gzip.open(path, "rt") as lines:
        for text in lines:
            line = json.loads(text)
            if line["op"] == "begin":
                sequences += 1
            elif line["op"] == "run_touch" and line.get("exits"):
                operations += len(line["touches"])
            else:
                operations += 1
    return sequences, operations


def test_two_recordings_of_each_of_four_kernels_ship() -> None:
    assert [path.name for path in SAMPLES] == [
        "v6.12-directed.jsonl.gz",
        "v6.12-random.jsonl.gz",
        "v6.18-directed.jsonl.gz",
        "v6.18-random.jsonl.gz",
        "v7.2-directed.jsonl.gz",
        "v7.2-random.jsonl.gz",
        "v7.3-directed.jsonl.gz",
        "v7.3-random.jsonl.gz",
    ]


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name.partition(".jsonl")[0])
def test_every_outcome_of_a_real_kernel_agrees_or_is_a_listed_divergence(path: Path) -> None:
    report = run_recording(path, target_named("model"))

    assert [(difference.line, difference.recorded, difference.got) for difference in report.differences] == []
    assert (report.sequences, report.operations) == operations_of(path)
    assert report.profiles == [path.name.partition("-")[0]]
    assert report.agreed + report.known_divergences == report.operations == report.compared


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name.partition(".jsonl")[0])
def test_the_wrong_kernel_would_be_noticed(path: Path) -> None:
    other = "v6.18" if path.name.startswith("v6.12") else "v6.12"

    report = run_recording(path, target_named("model", other))

    assert len(report.differences) > 10


def test_7_3_differs_from_7_2_where_a_bound_range_meets_a_gpa_that_cannot_be_mapped() -> None:
    """From 7.3 on whether the range is free is looked at last (kvm_gmem_commit_memory_region)."""
    recorded = run_recording(SAMPLES[-2], target_named("model", "v7.2"))

    assert SAMPLES[-2].name == "v7.3-directed.jsonl.gz"
    assert len(recorded.differences) == 12
    assert {(each.recorded["errno"], each.check) for each in recorded.differences} == {("EINVAL", "binding-free")}
