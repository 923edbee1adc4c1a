"""Recordings are written as others write them, and appear under their name only when they are whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from recordings import SAMPLES, answered

from guestmem.recordings.ioctls import CreateVm
from guestmem.recordings.outcome import GuestLeft, NotRun, Outcome, ProcessEnded, Skipped
from guestmem.recordings.reader import read_sequences
from guestmem.recordings.vocabulary import Begin
from guestmem.recordings.writer import recorded, writing


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz"])
def test_what_was_read_and_written_reads_the_same(name: str, tmp_path: Path) -> None:
    original = list(read_sequences(SAMPLES[0]))

    with writing(tmp_path / name) as write:
        for sequence in original:
            write(sequence.begin, sequence.operations)

    again = list(read_sequences(tmp_path / name))
    assert [each.begin for each in again] == [each.begin for each in original]
    assert [each.operations for each in again] == [each.operations for each in original]


def test_a_failure_leaves_neither_half_a_file_nor_a_changed_one(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text("as before")

    def interrupted() -> None:
        with writing(path) as write:
            write(Begin(seq="s"), [CreateVm(seq="s", i=0, type=0, out="vm0")])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert path.read_text() == "as before"
    assert list(tmp_path.iterdir()) == [path]


def test_an_outcome_is_written_and_the_old_one_is_not() -> None:
    old = CreateVm(seq="s", i=0, type=0, out="vm0", errno="EINVAL")

    assert recorded(old, answered(old, "vm0")).errno is None
    assert recorded(old, answered(old, "vm0")).result == "vm0"


@pytest.mark.parametrize("outcome", [Skipped("w"), NotRun("w"), GuestLeft("w"), ProcessEnded("w")], ids=repr)
def test_what_was_never_asked_or_never_answered_is_written_without_an_outcome(outcome: Outcome) -> None:
    old = CreateVm(seq="s", i=0, type=0, out="vm0", errno="EINVAL")

    assert recorded(old, outcome) == CreateVm(seq="s", i=0, type=0, out="vm0")
