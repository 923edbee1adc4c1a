"""Traces are read alike from every form, and what is no trace is one line."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmem.trace.event import TraceError, TraceEvent
from guestmem.trace.source import read_trace
from guestmem.trace.text import LONGEST_LINE, read_text
from guestmem.trace.tracedat import read_tracedat

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "kvm"
BINARY = ROOT / "examples/traces/kvm72-load.trace.dat.gz"
RAW = gzip.decompress(BINARY.read_bytes())


def events(path: Path) -> list[TraceEvent]:
    return [event for event in read_trace(path) if isinstance(event, TraceEvent)]


def text(lines: str) -> list[TraceEvent | int]:
    return list(read_text("t", io.BytesIO(lines.encode())))


def test_trace_dat_and_the_text_that_trace_cmd_prints_of_it_are_the_same_events() -> None:
    binary, printed = events(BINARY), events(DATA / "kvm72-load-report.txt.gz")

    assert len(binary) == len(printed) == 4257
    for one, other in zip(binary, printed, strict=True):
        assert (one.kind, one.fields, one.pid, one.task, one.cpu) == (
            other.kind, other.fields, other.pid, other.task, other.cpu
        )  # fmt: skip
        assert abs(one.time - other.time) < 1000, "trace-cmd prints microseconds"


@pytest.mark.parametrize(
    ("path", "counts"),
    [  # what grep counts in the files
        ("kvm72-ftrace.txt", {"kvm_mmu_set_spte": 22, "kvm_page_fault": 23, "kvm_tdp_mmu_spte_changed": 29}),
        ("kvm612-ftrace.txt", {"kvm_mmu_set_spte": 13, "kvm_page_fault": 13, "kvm_tdp_mmu_spte_changed": 17}),
        ("kvm72-tracecmd-report.txt", {"kvm_mmu_set_spte": 31, "kvm_page_fault": 29, "kvm_unmap_hva_range": 6}),
        ("kvm612-tracecmd-report.txt", {"kvm_mmu_set_spte": 26, "kvm_page_fault": 26, "kvm_unmap_hva_range": 6}),
        ("kvm72-perf-script.txt", {"kvm_mmu_set_spte": 31, "kvm_page_fault": 29, "kvm_unmap_hva_range": 6}),
    ],
)
def test_no_event_of_a_text_is_missed(path: str, counts: dict[str, int]) -> None:
    found = events(DATA / path)

    assert {kind: sum(event.kind == kind for event in found) for kind in counts} == counts


def test_trace_cmd_and_perf_saw_one_program_set_the_same_entries() -> None:
    def entries(name: str) -> list[tuple[int, int]]:
        found = (event for event in events(DATA / name) if event.kind == "kvm_mmu_set_spte")
        return [(event.fields["gfn"], event.fields["level"]) for event in found]

    assert entries("kvm72-tracecmd-report.txt") == entries("kvm72-perf-script.txt")


@pytest.mark.parametrize(
    "line",
    [
        "  CPU 0/KVM-1234    [003] d..2.    12.000001: kvm_mmu_set_spte: gfn a0 spte 1a0e67 (rwxu) level 1 at 10fe008",
        "  CPU 0/KVM-1234  (   1200) [003] d..2. 12.000001: kvm_mmu_set_spte: gfn a0 spte 1a0e67 (rwxu) level 1 at 1",
        "CPU 0/KVM  1234 [003]    12.000001:  kvmmmu:kvm_mmu_set_spte: gfn a0 spte 1a0e67 (rwxu) level 1 at 10fe008",
        "CPU 0/KVM  1200/1234 [003]    12.000001:  1 kvmmmu:kvm_mmu_set_spte: gfn a0 spte 1a0e67 (rwxu) level 1 at 1",
    ],
)
def test_a_task_may_have_blanks_and_the_head_be_of_any_tool(line: str) -> None:
    [event] = text(line)

    assert isinstance(event, TraceEvent)
    assert (event.task, event.cpu, event.time) == ("CPU 0/KVM", 3, 12_000_001_000)
    assert event.fields == {"gfn": 0xA0, "spte": 0x1A0E67, "level": 1}


@pytest.mark.parametrize("line", ["CPU:0 [LOST 123 EVENTS]", "CPU 1 is empty\nCPU:0 [123 EVENTS DROPPED]"])
def test_what_the_kernel_lost_is_told(line: str) -> None:
    assert text(line) == [123]


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        ("\n t-1 [000] ..... 1.000000: kvm_mmu_set_spte: gfn a0 level 1\n", r"t:2: kvm_mmu_set_spte has no spte"),
        (" t-1 [000] ..... 1.000000: slot: (ff) kvm=0x1 slot=0 flags=0\n", r"t:1: slot has no gpa"),
        ("x" * (LONGEST_LINE + 5), r"t:1: a line is longer than 64K"),
    ],
)
def test_a_bad_line_says_where_and_what_is_missing(lines: str, problem: str) -> None:
    with pytest.raises(TraceError, match=problem):
        text(lines)


def test_a_file_without_an_event_is_no_trace(tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("# tracer: nop\n")

    with pytest.raises(TraceError, match=r"no event of KVM's page tables"):
        list(read_trace(other))


def read_cut(data: bytes) -> Iterator[TraceEvent | int]:
    return read_tracedat("t", io.BytesIO(data))


def test_version_7_is_refused_with_the_command_that_helps() -> None:
    with pytest.raises(TraceError, match=r"of version 7; convert it: trace-cmd convert --file-version 6"):
        list(read_cut(RAW.replace(b"tracing6\0", b"tracing7\0", 1)))


@given(st.integers(0, len(RAW) - 1))
def test_a_trace_that_is_cut_off_is_read_to_there_or_refused(end: int) -> None:
    try:
        found = sum(1 for _ in read_cut(RAW[:end]))
    except TraceError:
        return
    assert found == 4257, "what is left out is padding"


@given(st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_trace_ends_in_events_or_a_refusal(damage: list[tuple[int, int]]) -> None:
    data = bytearray(RAW)
    for at, byte in damage:
        data[at] = byte
    with suppress(TraceError):
        for _, _ in zip(read_cut(bytes(data)), range(10_000), strict=False):
            pass


@given(st.binary(max_size=300))
def test_any_bytes_are_text_without_events_or_refused(data: bytes) -> None:
    with suppress(TraceError):
        assert list(read_text("t", io.BytesIO(data))) == []
