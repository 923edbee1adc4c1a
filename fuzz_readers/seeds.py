"""What the fuzzer starts from: the shipped captures of a format, cut to what it can change in reasonable time."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

from guestmem.layout import LayoutError
from guestmem.layout.recognise import recognise

__all__ = ("seeds_for",)

_EXAMPLES = Path(__file__).parent.parent / "examples"
_MAX_SEED = 32768  # bytes
_FLEET = (
    b'{"slots": [{"gpa": "0x100000", "size": 2097152, "hva": "0x7f0000100000"}]}\n'
    b'{"name": "b", "slots": [{"gpa": 0, "size": 4096, "file": "f", "offset": 0}], "files": [{"name": "f"}]}\n'
)


def seeds_for(name: str) -> list[bytes]:
    """The seeds of a format; those of all formats for any other name."""
    captures = [path.read_bytes() for path in sorted((_EXAMPLES / "layouts").iterdir()) if path.is_file()]
    recordings = [gzip.decompress(path.read_bytes()) for path in sorted((_EXAMPLES / "recordings").glob("*.gz"))]
    parts = [*(_cut(data) for data in [*captures, *recordings]), _FLEET, _parquet()]
    known = [(part, _format_of(part)) for part in parts if part]
    chosen = [part for part, format in known if format == name]
    return chosen or [part for part, format in known if format is not None]


def _cut(data: bytes) -> bytes:
    """The whole lines of the beginning; a document that would be cut is no seed."""
    if len(data) <= _MAX_SEED:
        return data
    return b"" if data.lstrip()[:1] == b"<" else data[: data.rfind(b"\n", 0, _MAX_SEED) + 1]


def _format_of(data: bytes) -> str | None:
    try:
        return recognise("seed", data)
    except LayoutError:
        return None


def _parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.table({"vm": ["a", "b"], "gpa": [0, 1 << 20], "size": [4096, 1 << 30]}), out)
    return out.getvalue()
