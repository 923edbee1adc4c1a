"""A trace in a file, of whatever format; gzip too."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from guestmem.trace.event import TraceError, TraceEvent
from guestmem.trace.text import read_text
from guestmem.trace.tracedat import MAGIC, read_tracedat

__all__ = ("read_trace",)

_GZIP = b"\x1f\x8b"


def read_trace(path: Path) -> Iterator[TraceEvent | int]:
    """The events of a file, and where some were lost; TraceError, OSError.

    A file without any event that is used is refused: it is something else, or the wrong events were recorded.
    """
    count = 0
    with _opened(path) as file:
        binary = file.read(len(MAGIC)) == MAGIC
        file.seek(0)
        try:
            for event in (read_tracedat if binary else read_text)(str(path), file):
                count += not isinstance(event, int)
                yield event
        except (EOFError, zlib.error, gzip.BadGzipFile) as wrong:
            raise TraceError(str(path), f"the gzip file is damaged: {wrong}") from wrong
    if not count:
        raise TraceError(
            str(path),
            "no event of KVM's page tables is in it; needed is tracefs or trace-cmd text, perf script, or trace.dat, "
            "with kvm_mmu_set_spte, kvm_tdp_mmu_spte_changed or probes (docs/trace.md)",
        )


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    with path.open("rb") as file:
        packed = file.read(2) == _GZIP
        file.seek(0)
        if packed:
            with gzip.open(file) as unpacked:
                yield cast("IO[bytes]", unpacked)
        else:
            yield file
