"""Write recordings: operations with what was observed, as other recorders write them."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from guestmem.outfile import writing_to
from guestmem.recordings.operation import Operation, unrun
from guestmem.recordings.outcome import Answered, Outcome
from guestmem.recordings.vocabulary import Begin

__all__ = ("Write", "lines_of", "recorded", "writing")

Write = Callable[[Begin, Iterable[Operation]], None]

_BEGIN_DEFAULTS = msgspec.to_builtins(Begin(seq=""))


def recorded(operation: Operation, outcome: Outcome) -> Operation:
    """The operation with this outcome; without any, if it was not answered."""
    answered: Operation = outcome.operation if isinstance(outcome, Answered) else unrun(operation)
    return answered


def lines_of(begin: Begin, operations: Iterable[Operation]) -> Iterator[str]:
    """The lines of a sequence; operations are numbered anew."""
    values = {name: value for name, value in msgspec.to_builtins(begin).items() if value != _BEGIN_DEFAULTS.get(name)}
    yield _line({"op": "begin", "seq": begin.seq, "i": begin.i, **values})
    for index, operation in enumerate(operations):
        values = {"op": "", "seq": "", "i": 0, **msgspec.to_builtins(operation)}
        yield _line({**values, "seq": begin.seq, "i": index})


@contextmanager
def writing(path: Path) -> Iterator[Write]:
    """Write a recording sequence by sequence, gzip if the name ends in .gz; OSError. Nothing is left of a failure."""
    with writing_to(path) as raw:
        stream = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else raw

        def write(begin: Begin, operations: Iterable[Operation]) -> None:
            for line in lines_of(begin, operations):
                stream.write(f"{line}\n".encode())

        yield write
        if stream is not raw:
            stream.close()


def _line(values: dict[str, Any]) -> str:
    return msgspec.json.encode(values).decode()
