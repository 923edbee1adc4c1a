"""From a file's bytes to layouts, by the table of ``formats``.

Bytes are bounded before anything looks at them: a gzip of nothing and a file of a gigabyte end in one clear line.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from guestmem.layout.budget import MAX_BYTES, Budget
from guestmem.layout.error import LayoutError, printable
from guestmem.layout.formats import FORMATS, Format, reader
from guestmem.layout.text import MAX_LINE
from guestmem.layout.value import Layout
from guestmem.units import format_size

if TYPE_CHECKING:
    from guestmem.layout.fleet import Fleet

__all__ = ("load", "read", "read_fleet", "recognise")

_HEAD = 1 << 16
_NO_JSON = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
# The first part of a key of the table: what a value holds beyond that costs no memory.
_NAMES = tuple(
    dict.fromkeys(key.removeprefix("lines.").partition(".")[0] for one in FORMATS.values() for key in one.keys)
)
_Keys = msgspec.defstruct(
    "_Keys",
    [(f"key{at}", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for at, _ in enumerate(_NAMES)],
    rename={f"key{at}": name for at, name in enumerate(_NAMES)},
)


def load(source: str) -> bytes:
    """The bytes of a file ("-": standard input), unpacked if gzip, at most MAX_BYTES."""
    try:
        if source == "-":
            if sys.stdin is None:  # the shell closed it: <&-
                raise LayoutError(source, "standard input is closed")
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LayoutError(source, f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise LayoutError(source, f"the name cannot be that of a file: {error}") from None
    if data[:2] == b"\x1f\x8b":
        data = _unpack(source, data)
    if len(data) > MAX_BYTES:
        remedy = "keep the lines that matter, as in grep kvm_set_user_memory"
        raise LayoutError(source, f"at most {format_size(MAX_BYTES)} are read, unpacked", remedy=remedy)
    return data.removeprefix(BOM_UTF8)


def read(
    source: str, data: bytes, format: str | None = None, firecracker: tuple[int, int] | None = None
) -> list[Layout]:
    """The layouts in a file's bytes; ``format`` is recognised when None, ``firecracker`` the version of that VMM."""
    chosen = _chosen(source, data, format)
    if not chosen.layouts:
        raise LayoutError(source, f"{chosen.title} is read by 'guestmem check' only")
    version = {"version": firecracker} if firecracker and chosen.layouts.startswith("firecracker.") else {}
    budget = Budget(source)
    return [budget.take(layout) for layout in reader(chosen.layouts)(source, data, **version)]


def read_fleet(source: str, data: bytes, format: str | None = None) -> Fleet | None:
    """The fleet in a file's bytes, or None when the format is none of a fleet."""
    chosen = _chosen(source, data, format)
    if not chosen.fleet:
        return None
    fleet: Fleet = reader(chosen.fleet)(source, data)
    return fleet


def _chosen(source: str, data: bytes, format: str | None) -> Format:
    if format is not None and format not in FORMATS:
        raise LayoutError(source, f"needed one of {', '.join(FORMATS)}", field="format", value=format)
    chosen = FORMATS[format or recognise(source, data)]
    if chosen.most and len(data) > chosen.most:
        raise LayoutError(source, f"at most {format_size(chosen.most)} of {chosen.title} are read", remedy="split it")
    return chosen


def recognise(source: str, data: bytes) -> str:
    """The name of the format; a LayoutError lists the known ones when it is none of them."""
    if not data or data.isspace():
        raise LayoutError(source, "the file is empty")
    head = data[:_HEAD].lstrip()
    found = _first(lambda one: one.starts(head))
    if found is None and head[:1] in (b"{", b"["):
        found = _recognise_json(data)
    found = found or _first(lambda one: one.has_text(data))  # "[" starts TOML and strace -f too
    if found is None:
        raise LayoutError(source, "the format is not known", remedy=f"name it with --format: {', '.join(FORMATS)}")
    return found


def _first(fits: Callable[[Format], bool]) -> str | None:
    return next((name for name, format in FORMATS.items() if fits(format)), None)


def _recognise_json(data: bytes) -> str | None:
    """By keys: of the document, else of its first line; of a list by what its head names."""
    head = data[:_HEAD].lstrip()
    if head[:1] == b"[":
        return _first(lambda one: one.is_named_in(head, "[]."))
    try:
        keys = _keys(data)
    except _NO_JSON:
        try:
            keys = {f"lines.{key}" for key in _keys(data.lstrip()[:MAX_LINE].partition(b"\n")[0])}
        except _NO_JSON:
            # Neither a document nor lines: let the reader of the likeliest format say what is wrong with it.
            return _first(lambda one: one.is_named_in(head))
        keys |= {key.removeprefix("lines.") for key in keys}
    return _first(lambda one: one.has_key(keys))


def _keys(data: bytes) -> set[str]:
    """Those keys of an object that the table knows, as it has them."""
    keys = _present(msgspec.json.decode(data, type=_Keys))
    config = bytes(keys.get("config", b""))
    inside = _present(msgspec.json.decode(config, type=_Keys)) if config[:1] == b"{" else {}
    return {*keys, *(f"config.{key}" for key in inside)}


def _present(keys: Any) -> dict[str, msgspec.Raw]:
    values = {name: getattr(keys, field) for name, field in zip(_NAMES, _Keys.__struct_fields__, strict=True)}
    return {name: value for name, value in values.items() if value is not msgspec.UNSET}


def _unpack(source: str, data: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(data)) as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LayoutError(source, f"needed gzip ({printable(error, 80)})") from None
