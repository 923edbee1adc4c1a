"""trace.dat of version 6, as ``trace-cmd record --file-version 6`` writes it, read without trace-cmd.

Heads, the format of each event, then for every CPU the raw pages of its ring buffer (trace-cmd.dat.v6(5)). A page has
a time, its length with a mark for lost events, and events of a time delta and a payload that begins with an id. Version
7 is compressed: ``trace-cmd convert --file-version 6 --compression none`` makes a version 6 of it.
"""

from __future__ import annotations

import heapq
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Final

from guestmem.trace.event import FIELDS, TraceError, TraceEvent, kind_of

__all__ = ("MAGIC", "read_tracedat")

MAGIC: Final = b"\x17\x08\x44tracing"
_MOST: Final = 1 << 28  # bytes of one section: kallsyms is 9 MB
_NAME = re.compile(r"^name: (\S+)$", re.MULTILINE)
_ID = re.compile(r"^ID: (\d+)$", re.MULTILINE)
_FIELD = re.compile(r"field:[^;]*?\b(\w+)(?:\[\d*\])?;\s*offset:(\d+);\s*size:(\d+);\s*signed:([01]);")
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_LOST: Final = 1 << 31
_COMMIT: Final = 0xFFFFF


@dataclass(frozen=True, slots=True)
class _Format:
    kind: str
    fields: tuple[tuple[str, int, int, bool], ...]  # name, offset, size, signed


class _Reader:
    def __init__(self, where: str, file: IO[bytes]) -> None:
        self.where = where
        self.file = file
        self.order = "<"

    def take(self, size: int, what: str) -> bytes:
        if not 0 <= size <= _MOST:
            raise TraceError(self.where, f"{what} is said to be {size} bytes long; the limit is {_MOST}")
        data = self.file.read(size)
        if len(data) < size:
            raise TraceError(self.where, f"the file ends in {what}: {len(data)} of {size} bytes are there")
        return data

    def number(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little" if self.order == "<" else "big")

    def string(self, what: str) -> bytes:
        found = bytearray()
        while (byte := self.take(1, what)) != b"\0":
            found += byte
            if len(found) > 4096:
                raise TraceError(self.where, f"{what} does not end")
        return bytes(found)


def read_tracedat(where: str, file: IO[bytes]) -> Iterator[TraceEvent | int]:
    """The events in order of time; a number is how many the kernel lost there, 0 if it did not say. TraceError."""
    reader = _Reader(where, file)
    if reader.take(len(MAGIC), "the magic number") != MAGIC:
        raise TraceError(where, "this is no trace.dat")
    version = reader.string("the version").decode(errors="replace")
    if version != "6":
        raise TraceError(
            where, f"trace.dat is of version {version:.10}; convert it: trace-cmd convert --file-version 6 "
            "--compression none -i IN -o OUT"
        )  # fmt: skip
    reader.order = ">" if reader.number(1, "the byte order") else "<"
    if reader.number(1, "the word size") != 8:
        raise TraceError(where, "it is from a machine that is not of 64 bits")
    page_size = reader.number(4, "the page size")
    for section in (b"header_page\0", b"header_event\0"):
        if reader.take(len(section), "a header") != section:
            raise TraceError(where, f"{section[:-1].decode()} is missing")
        reader.take(reader.number(8, "a header's length"), "a header")
    formats = _formats(reader)
    for what in ("kallsyms", "the printk formats"):
        reader.take(reader.number(4, f"the length of {what}"), what)
    tasks = _tasks(reader.take(reader.number(8, "the length of the command lines"), "the command lines"))
    cpus = reader.number(4, "the number of CPUs")
    if cpus > 1 << 14:
        raise TraceError(where, f"it is said to be of {cpus} CPUs")
    _options(reader)
    places = [(reader.number(8, "a CPU's offset"), reader.number(8, "a CPU's size")) for _ in range(cpus)]
    streams = [
        _events(reader, page_size, formats, tasks, cpu, offset, size) for cpu, (offset, size) in enumerate(places)
    ]
    for _, _, _, event in heapq.merge(*(_keyed(stream, cpu) for cpu, stream in enumerate(streams))):
        yield event


def _keyed(
    stream: Iterator[tuple[int, TraceEvent | int]], cpu: int
) -> Iterator[tuple[int, int, int, TraceEvent | int]]:
    for count, (time, event) in enumerate(stream):
        yield time, cpu, count, event


def _formats(reader: _Reader) -> dict[int, _Format]:
    found: dict[int, _Format] = {}
    for _ in range(reader.number(4, "the number of formats")):
        reader.take(reader.number(8, "a format's length"), "a format")
    for _ in range(reader.number(4, "the number of systems")):
        reader.string("a system's name")
        for _ in range(reader.number(4, "a system's number of events")):
            text = reader.take(reader.number(8, "a format's length"), "a format").decode(errors="replace")
            name, id = _NAME.search(text), _ID.search(text)
            kind = kind_of(name[1]) if name else None
            if kind is not None and id is not None:
                fields = tuple((f, int(at), int(size), signed == "1") for f, at, size, signed in _FIELD.findall(text))
                missing = set(FIELDS[kind]) - {field for field, *_ in fields}
                if missing:
                    raise TraceError(reader.where, f"the format of {kind} has no {min(missing)}")
                found[int(id[1])] = _Format(kind, tuple(field for field in fields if field[0] in FIELDS[kind]))
    return found


def _tasks(text: bytes) -> dict[int, str]:
    lines = (line.split(None, 1) for line in text.decode(errors="replace").splitlines())
    return {int(words[0]): words[1] for words in lines if len(words) == 2 and words[0].isdigit()}


def _options(reader: _Reader) -> None:
    kind = reader.take(10, "the options")
    if kind == b"options  \0":
        while reader.number(2, "an option"):
            reader.take(reader.number(4, "an option's length"), "an option")
        kind = reader.take(10, "the data's head")
    if kind != b"flyrecord\0":
        raise TraceError(reader.where, f"{kind[:9].decode(errors='replace')!r} where the events' head was needed")


def _events(
    reader: _Reader,
    page_size: int,
    formats: dict[int, _Format],
    tasks: dict[int, str],
    cpu: int,
    offset: int,
    size: int,
) -> Iterator[tuple[int, TraceEvent | int]]:
    """One CPU's; only a page of it is in memory."""
    if not 256 <= page_size <= 1 << 20:
        raise TraceError(reader.where, f"the page size is said to be {page_size}")
    for start in range(offset, offset + size, page_size):
        reader.file.seek(start)
        page = reader.file.read(page_size)
        if len(page) < 16:
            raise TraceError(reader.where, f"the file ends in the events of CPU {cpu}, at byte {start}")
        time, commit = struct.unpack_from(f"{reader.order}QQ", page)
        end = 16 + (commit & _COMMIT)
        if end > len(page):
            raise TraceError(reader.where, f"the events of CPU {cpu} at byte {start} go past their page")
        if commit & _LOST:
            yield time, 0
        yield from _page(reader, page, end, time, formats, tasks, cpu)


def _page(
    reader: _Reader, page: bytes, end: int, time: int, formats: dict[int, _Format], tasks: dict[int, str], cpu: int
) -> Iterator[tuple[int, TraceEvent | int]]:
    at, order = 16, "little" if reader.order == "<" else "big"

    def number(where: int, size: int, *, signed: bool = False) -> int:
        return int.from_bytes(page[where : where + size], order, signed=signed)  # type: ignore[arg-type]  # a literal

    while at + 4 <= end:
        head = number(at, 4)
        length, delta = head & 31, head >> 5
        at += 4
        if length == _PADDING:
            if not delta:
                return
            at += number(at, 4)
            time += delta
            continue
        if length in (_TIME_EXTEND, _TIME_STAMP):
            extended = delta | number(at, 4) << 27
            time = time + extended if length == _TIME_EXTEND else extended
            at += 4
            continue
        time += delta
        payload = number(at, 4) - 4 if length == 0 else 4 * length
        at += 4 if length == 0 else 0
        if payload < 8 or at + payload > end:
            raise TraceError(reader.where, f"an event of CPU {cpu} is said to be {payload} bytes long")
        known = formats.get(number(at, 2))
        if known is not None:
            pid = number(at + 4, 4, signed=True)
            fields = {name: number(at + off, size, signed=signed) for name, off, size, signed in known.fields}
            yield time, TraceEvent(time, cpu, tasks.get(pid, ""), pid, known.kind, fields)
        at += payload
