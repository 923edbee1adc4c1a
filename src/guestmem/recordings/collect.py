"""Differences between two places over whole recordings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from guestmem.errors import InputError
from guestmem.recordings.difference import Difference, Pair, first_difference
from guestmem.recordings.play import Place
from guestmem.recordings.reader import RecordingError, read_sequences
from guestmem.recordings.vocabulary import Begin, Operation

__all__ = ("Collected", "collect", "compare_places")


@dataclass(slots=True)
class Collected:
    """What comparing many sequences gave. operations counts guest touches one by one, up to first differences."""

    sequences: int = 0
    operations: int = 0
    skipped: int = 0
    known: list[Difference] = field(default_factory=list)
    new: list[Difference] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Count one sequence."""
        self.sequences += 1
        self.operations += pair.operations
        self.skipped += pair.skipped
        self.known += pair.known
        if pair.new is not None:
            self.new.append(pair.new)


def compare_places(begin: Begin, operations: Iterable[Operation], a: Place, b: Place) -> Pair:
    """Run a sequence on both; if one of them is real, both are held to its limits."""
    limited = a.real or b.real
    chosen = tuple(operations)
    with closing(a.run(begin, chosen, limited=limited)) as on_a, closing(b.run(begin, chosen, limited=limited)) as on_b:
        return first_difference(begin, chosen, on_a, on_b)


def collect(paths: Iterable[Path], a: Place, b: Place, on_sequence: Callable[[], None] = lambda: None) -> Collected:
    """Run every sequence of recordings on both places; RecordingError, OSError. Recorded outcomes are not looked at."""
    collected = Collected()
    for path in paths:
        for sequence in read_sequences(path):
            try:
                collected.add(compare_places(sequence.begin, sequence.operations, a, b))
            except InputError as error:
                raise RecordingError(str(path), sequence.line, str(error)) from error
            on_sequence()
    return collected
