"""What comparing with real kernels found wrong in the model, as the kernel answered: recordings in tests/data/found."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Guestmem

from guestmem.recordings.reader import read_sequences

FOUND = sorted((Path(__file__).parent / "data" / "found").glob("*.jsonl"))
each = pytest.mark.parametrize("path", FOUND, ids=lambda path: path.stem)


@each
def test_the_model_answers_as_the_kernel_did(path: Path, guestmem_command: Guestmem) -> None:
    ended = guestmem_command("run", path)

    assert ended.code == 0, ended.out
    assert ", 0 known divergences, 0 differences" in ended.out


@each
def test_it_is_one_sequence_of_a_kernel_and_says_which(path: Path) -> None:
    [sequence] = read_sequences(path)

    assert sequence.begin.kernel.startswith(("lab: Linux ", "lab:7.3: Linux ", "kvm: Linux "))
    assert sequence.begin.title


@pytest.mark.lab
def test_the_labs_kernel_answers_so_again(guestmem_command: Guestmem) -> None:
    paths = [path for path in FOUND if next(iter(read_sequences(path))).begin.kernel.startswith("lab: ")]

    ended = guestmem_command("run", "--on", "lab", *paths)

    assert ended.code == 0, ended.out
    assert ", 0 known divergences, 0 differences" in ended.out
