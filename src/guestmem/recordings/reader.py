"""Read recordings: JSON Lines, plain or gzip, into typed operations, one sequence at a time.

Files are hostile until read: lines are bounded, numbers are 64 bit, an unknown operation or field is refused. Every
refusal is one RecordingError that names the file and the line.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from guestmem.duplicates import duplicate_key
from guestmem.errors import InputError
from guestmem.recordings.calls import HostWrite
from guestmem.recordings.ioctls import RecordedTouch, RunTouch
from guestmem.recordings.operation import HostAddress, Operation
from guestmem.recordings.vocabulary import Begin, Line
from guestmem.text import safe
from guestmem.units import U64

__all__ = ("RecordingError", "Sequence", "read_sequences", "sequences_in")

MAX_LINE_BYTES = 1 << 20
MAX_SEQUENCE_BYTES = 16 << 20  # its operations are held at once, and take ten times as much
_MAX_SHOWN = 160


class RecordingError(InputError):
    """A recording cannot be read; the message names file and line."""

    def __init__(self, path: str, line: int, problem: str) -> None:
        problem = problem[:_MAX_SHOWN]
        # What a recording says may be quoted in the problem, and must not write to a terminal.
        super().__init__(f"{safe(path)}:{line}: {safe(problem)}")
        self.path = path
        self.line = line
        self.problem = problem


@dataclass(slots=True)
class Sequence:
    """One sequence: its begin line and its operations, with the line of each in which file."""

    begin: Begin
    line: int
    path: str
    operations: list[Operation] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)


def read_sequences(path: Path) -> Iterator[Sequence]:
    """Yield the sequences of a recording, in order; RecordingError, OSError."""
    with path.open("rb") as file:
        yield from sequences_in(file, str(path))


def sequences_in(file: BinaryIO, name: str) -> Iterator[Sequence]:
    """Yield the sequences of an open recording that errors call ``name``; it must be seekable."""
    sequence: Sequence | None = None
    size = 0
    decoder: msgspec.json.Decoder[Begin | Operation] = msgspec.json.Decoder(Line)
    for number, raw in _lines(file, name):
        operation = _decode(decoder, raw, name, number)
        size = len(raw) + (0 if isinstance(operation, Begin) else size)
        if size > MAX_SEQUENCE_BYTES:
            raise RecordingError(name, number, f"the sequence is longer than {MAX_SEQUENCE_BYTES} bytes; split it")
        if isinstance(operation, Begin):
            if sequence is not None:
                yield sequence
            sequence = Sequence(operation, number, name)
            continue
        if sequence is None:
            raise RecordingError(name, number, 'the first line must be an operation "begin"')
        if operation.seq != sequence.begin.seq:
            problem = f"operation of sequence {operation.seq!r} inside sequence {sequence.begin.seq!r}"
            raise RecordingError(name, number, problem)
        sequence.operations.append(operation)
        sequence.lines.append(number)
    if sequence is None:
        raise RecordingError(name, 1, "the recording is empty")
    yield sequence


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes]]:
    stream: BinaryIO = file
    if file.read(2) == b"\x1f\x8b":
        stream = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=file))))
    file.seek(0)
    number = 0
    while True:
        number += 1
        try:
            raw = stream.readline(MAX_LINE_BYTES + 1)
        except (EOFError, OSError, zlib.error) as error:
            raise RecordingError(name, number, f"the gzip data ends or breaks here: {error}") from error
        if not raw:
            return
        if len(raw) > MAX_LINE_BYTES:
            raise RecordingError(name, number, f"the line is longer than {MAX_LINE_BYTES} bytes")
        if not raw.strip():
            raise RecordingError(name, number, "the line is empty; every line is one operation")
        yield number, raw


def _decode(decoder: msgspec.json.Decoder[Begin | Operation], raw: bytes, name: str, number: int) -> Begin | Operation:
    try:
        line = decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordingError(name, number, str(error) or "nested too deeply") from error
    if (key := duplicate_key(raw)) is not None:
        raise RecordingError(name, number, f"the key {key!r} is given twice")
    _check_numbers(line, name, number)
    return line


def _check_numbers(line: msgspec.Struct, name: str, number: int) -> None:
    for key in line.__struct_fields__:
        value = getattr(line, key)
        if isinstance(value, int) and value >= U64:
            raise RecordingError(name, number, f"{key} does not fit in 64 bits: {str(value)[:40]}")
        if isinstance(value, HostAddress):
            _check_numbers(value, name, number)
        elif isinstance(value, list) and key in ("reserved", "pad2"):
            for item in value:
                if item >= U64:
                    raise RecordingError(name, number, f"{key} does not fit in 64 bits: {str(item)[:40]}")
    if isinstance(line, RunTouch):
        for touch in line.touches:
            _check_numbers(touch, name, number)
            _check_store(touch, name, number)
            if (touch.gpa & 0xFFF) + touch.size > 0x1000:
                raise RecordingError(name, number, f"the touch at gpa {touch.gpa:#x} crosses a page")
    elif isinstance(line, HostWrite):
        _check_store(line, name, number)


def _check_store(store: HostWrite | RecordedTouch, name: str, number: int) -> None:
    if store.value >= 1 << 8 * store.size:
        raise RecordingError(name, number, f"value {store.value:#x} does not fit in {store.size} bytes")
