"""Write recordings: operations with what was observed, as other recorders write them.

A file appears under its name only when it is whole: it is written beside it first and then renamed.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from guestmem.backend import Exit
from guestmem.recordings import vocabulary as v
from guestmem.recordings.runner import Outcome

__all__ = ("Write", "lines_of", "recorded", "unrun", "writing")

Write = Callable[[v.Begin, Iterable[v.Operation]], None]
AnyOperation = TypeVar("AnyOperation", bound=v.Operation)

_BEGIN_DEFAULTS = msgspec.to_builtins(v.Begin(seq=""))
_NOT_OBSERVED = frozenset(("skipped", "not_issued", "unexpected_exit", "process_ended"))


def recorded(operation: AnyOperation, outcome: Outcome) -> AnyOperation:
    """The operation with this outcome; without any, if it was not issued or ended in no way that a recording knows."""
    bare = unrun(operation)
    if _NOT_OBSERVED & outcome.observed.keys():
        return bare
    observed: dict[str, Any] = {name: value for name, value in outcome.observed.items() if hasattr(bare, name)}
    if outcome.exits is not None and isinstance(operation, v.RunTouch):
        observed["exits"] = [[_exit(exit) for exit in exits] for exits in outcome.exits]
    return msgspec.structs.replace(bare, result=outcome.result, errno=outcome.errno, **observed)


def unrun(operation: AnyOperation) -> AnyOperation:
    """The operation without any outcome."""
    return msgspec.structs.replace(operation, **_without_outcome(type(operation)))


@cache
def _without_outcome(kind: type[v.Operation]) -> dict[str, Any]:
    """What the fields of an outcome are before there is one; asking msgspec takes longer than running an operation."""
    names = ("result", "errno", "exits", "signal", "gpa_out", "size_out", "livelock")
    return {
        field.name: field.default
        for field in msgspec.structs.fields(kind)
        if field.name in names or field.name.startswith("st_")
    }


def lines_of(begin: v.Begin, operations: Iterable[v.Operation]) -> Iterator[str]:
    """The lines of a sequence; operations are numbered anew."""
    values = {name: value for name, value in msgspec.to_builtins(begin).items() if value != _BEGIN_DEFAULTS.get(name)}
    yield _line({"op": "begin", "seq": begin.seq, "i": begin.i, **values})
    for index, operation in enumerate(operations):
        values = {"op": "", "seq": "", "i": 0, **msgspec.to_builtins(operation)}
        yield _line({**values, "seq": begin.seq, "i": index})


@contextmanager
def writing(path: Path) -> Iterator[Write]:
    """Write a recording sequence by sequence, gzip if the name ends in .gz; OSError. Nothing is left of a failure."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as raw:
            stream = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.suffix == ".gz" else raw

            def write(begin: v.Begin, operations: Iterable[v.Operation]) -> None:
                for line in lines_of(begin, operations):
                    stream.write(f"{line}\n".encode())

            yield write
            if stream is not raw:
                stream.close()
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _line(values: dict[str, Any]) -> str:
    return msgspec.json.encode(values).decode()


def _exit(exit: Exit) -> v.RecordedExit:
    names = ("errno", "value", "gpa", "len", "is_write", "data", "flags", "size")
    return v.RecordedExit(exit=exit.kind, **{name: getattr(exit, name) for name in names})
