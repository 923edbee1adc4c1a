"""Kernel traces: events a CPU second, read from text and from trace.dat, and added up."""

from __future__ import annotations

import gzip
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.measure import say
from guestmem.trace.event import TraceEvent
from guestmem.trace.summary import summarise
from guestmem.trace.text import read_text
from guestmem.trace.tracedat import read_tracedat

__all__ = ("traces",)

ROOT = Path(__file__).parent.parent
BINARY = ROOT / "examples/traces/kvm72-load.trace.dat.gz"
TEXT = ROOT / "tests/data/kvm/kvm72-load-report.txt.gz"
_TIMES = 20


def traces() -> None:
    """The same 4,257 events of a real run, again and again, in both forms."""
    binary, text = (gzip.decompress(path.read_bytes()) for path in (BINARY, TEXT))
    of_binary = _rate(lambda: read_tracedat("b", io.BytesIO(binary)))
    of_text = _rate(lambda: read_text("t", io.BytesIO(text)))
    events = list(read_tracedat("b", io.BytesIO(binary)))
    of_sums = _rate(lambda: iter(events), sums=True)
    say(
        "events of a trace, trace.dat",
        f"{of_binary:,.0f}/s CPU",
        f"text {of_text:,.0f}/s: {of_binary / of_text:.1f} times",
    )
    say("events of a trace, added up", f"{of_sums:,.0f}/s CPU", "tables, slots and time line")


def _rate(read: Callable[[], Iterator[TraceEvent | int]], *, sums: bool = False) -> float:
    start, count = time.process_time(), 0
    for _ in range(_TIMES):
        count += summarise(read()).events.total() if sums else sum(1 for _ in read())
    return count / (time.process_time() - start)
