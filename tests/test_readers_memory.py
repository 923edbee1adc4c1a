"""Memory is bounded by what comes out of a source: each of these is read, or refused in one line, within 1 GiB.

The limit is on the address space of the whole process, as ``ulimit -v`` sets it, so it counts the interpreter, numpy
and pyarrow (350 MiB, most of it never touched) and leaves a reader about 650 MiB. It is absolute, because that is the
promise; numpy's threads, whose stacks and buffers grow with the machine, are turned off. Unbounded, each of these
inputs asks for more than 1 GiB.
"""

from __future__ import annotations

import gzip
import io
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from examples import DATA
from pyarrow import parquet

from guestmem.layout import budget
from guestmem.units import GIB, MIB

DOCUMENT = budget.MAX_DOCUMENT - 64


def filled(head: bytes, unit: bytes, tail: bytes, size: int) -> bytes:
    """As many units between head and tail as size allows."""
    return head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail


def packed(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def table(**columns: object) -> bytes:
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def one_long_name() -> bytes:
    """As an array of texts, every row would be as wide as the longest name: 26 GB."""
    rows = 1 << 18
    names = pyarrow.array(["a" * 100_000] + ["b"] * (rows - 1)).dictionary_encode()
    return table(vm=names, gpa=[0] * rows, size=[4096] * rows)


MONITOR = b'FlatView #0\n AS "memory", root: system\n'
ROW = b"  0000000000000000-0000000000000fff (prio 0, ram): a\n"
BEGIN = b'{"op":"begin","seq":"a"}\n'
CLOSE = b'{"op":"close","seq":"a","i":0,"fd":1}\n'

SOURCES: dict[str, tuple[Callable[[], bytes], str]] = {
    "gzip of lists": (lambda: (DATA / "adversary" / "amplify.json.gz").read_bytes(), "at most 128M"),
    "gzip of nothing": (lambda: packed(bytes(300 * MIB)), "at most 128M"),
    "empty objects": (lambda: packed(filled(b'{"slots":[{}', b",{}", b"]}", 120 * MIB)), "at most 8M"),
    "a list that is no list of layouts": (lambda: packed(filled(b"[[]", b",[]", b"]", 120 * MIB)), "not known"),
    "slots": (
        lambda: packed(filled(b'{"slots":[{"gpa":0,"size":1}', b',{"gpa":0,"size":1}', b"]}", DOCUMENT)),
        "at most 131,072 slots",
    ),
    "zones": (lambda: packed(filled(b'{"memory":{"zones":[{}', b",{}", b"]}}", DOCUMENT)), "at most 4096 zones"),
    "unknown values": (lambda: packed(filled(b'{"memory":{"size":4096,"x":[[]', b",[]", b"]}}", DOCUMENT)), ""),
    "TOML tables": (lambda: filled(b"slots = []\n", b"[[a]]\n", b"", budget.MAX_TOML), "`a`"),
    "more TOML": (lambda: filled(b"slots = []\n", b"[[a]]\n", b"", 4 * MIB), "at most 512K"),
    "XML elements": (lambda: packed(filled(b"<domain>", b"<a/>", b"</domain>", DOCUMENT)), "needed <memory>"),
    "monitor rows": (lambda: packed(MONITOR + ROW * 200_000), "at most 131,072 rows"),
    "a long row": (lambda: packed(MONITOR + ROW[:-1] + b"a" * 900_000 + "\U0001f600\n".encode()), "characters"),
    "operations": (lambda: packed(BEGIN + CLOSE * 500_000), "longer than"),
    "VMs": (lambda: packed(b'{"slots":[{"gpa":0,"size":4096}],"private":[]}\n' * 20_000), "at most 16,384 layouts"),
    "one long name": (one_long_name, "no name is longer"),
    "a column of a gigabyte": (
        lambda: table(vm=["x" * 4000] * 20_000, gpa=[0] * 20_000, size=["y" * 4000] * 20_000),
        "needed integers",
    ),
}  # fmt: skip


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (GIB, GIB))


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_is_read_or_refused_within_a_gibibyte(name: str, tmp_path: Path) -> None:
    make, wanted = SOURCES[name]
    (tmp_path / "source").write_bytes(make())
    command = [sys.executable, "-m", "guestmem", "check", "--fail-on", "never", "source"]
    alone = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=alone, preexec_fn=limited)

    assert wanted in done.stderr
    assert (done.returncode, done.stderr.count("\n")) == ((2, 1) if wanted else (0, 0))


def test_the_limit_is_one_that_the_readers_would_break(tmp_path: Path) -> None:
    code = (
        "import msgspec\ntry:\n msgspec.json.decode(b'[' + b'{},' * (40 << 20) + b'{}]')\nexcept MemoryError: print(1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limited)
    assert done.stdout == "1\n"
