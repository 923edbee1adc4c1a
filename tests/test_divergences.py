"""The table of known divergences: what is recognised as one, and that nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem.model.capabilities import CAPABILITIES
from guestmem.recordings.calls import Close, Fallocate, HostRead, Madvise, Mmap
from guestmem.recordings.divergences import DIVERGENCES, History, divergence_of
from guestmem.recordings.ioctls import CheckExtension, CreateVm, PreFault, RecordedExit, RunTouch, SetMemoryAttributes
from guestmem.recordings.operation import Operation
from guestmem.recordings.vocabulary import Begin

STALE = RecordedExit("memory_fault", errno="EFAULT", anomaly="stale_mmio")
PLAIN = RecordedExit("memory_fault", errno="EFAULT", flags=0)


def name_of(operation: Operation, exits: list[RecordedExit] | None = None) -> str | None:
    divergence = divergence_of(operation, exits)
    return None if divergence is None else divergence.name


def run_touch() -> RunTouch:
    return RunTouch(seq="s", i=0, vm="vm0", vcpu="cpu0", boot_gpa=0, touches=[])


def pre_fault(*, livelock: bool) -> PreFault:
    return PreFault(seq="s", i=0, vcpu="cpu0", gpa=0, size=4096, flags=0, livelock=livelock)


def capability(number: int) -> CheckExtension:
    return CheckExtension(seq="s", i=0, on="kvm", cap=number)


def advice(number: int) -> Madvise:
    return Madvise(seq="s", i=0, map="map0", advice=number)


@pytest.mark.parametrize(
    ("operation", "exits", "name"),
    [
        (run_touch(), [STALE], "stale-mmio"),
        (run_touch(), [PLAIN, STALE], "stale-mmio"),
        (pre_fault(livelock=True), None, "pre-fault-livelock"),
        (capability(999), None, "other-capabilities"),
        (advice(102), None, "guard-regions"),
        (advice(103), None, "guard-regions"),
        (advice(12), None, "unconfigured-advice"),
        (advice(13), None, "unconfigured-advice"),
    ],
)
def test_a_marked_or_foreign_outcome_is_recognised(
    operation: Operation, exits: list[RecordedExit] | None, name: str
) -> None:
    assert name_of(operation, exits) == name


@pytest.mark.parametrize(
    ("operation", "exits"),
    [
        (run_touch(), [PLAIN]),
        (run_touch(), []),
        (run_touch(), None),
        (run_touch(), [RecordedExit("memory_fault", anomaly="something else")]),
        (pre_fault(livelock=False), None),
        (advice(4), None),
        (advice(101), None),
        (advice(104), None),
        *((capability(number), None) for number in CAPABILITIES),
        (CreateVm(seq="s", i=0, type=1, out="vm0"), None),
        (Fallocate(seq="s", i=0, fd="gm0", mode=1, offset=0, len=4096), None),
        (SetMemoryAttributes(seq="s", i=0, vm="vm0", address=0, size=4096, attributes=8, flags=0), None),
        (HostRead(seq="s", i=0, buf="A", off=0, size=8), None),
        (Close(seq="s", i=0, fd="vm0"), None),
    ],
)
def test_nothing_else_is(operation: Operation, exits: list[RecordedExit] | None) -> None:
    assert name_of(operation, exits) is None


@pytest.mark.parametrize(
    ("flags", "length", "number", "name"),
    [
        (0x22, 0x200000, 25, "collapse"),
        (0x22, 0x400000, 25, "collapse"),
        (0x22, 0x1FF000, 25, None),
        (0x21, 0x200000, 25, "collapse"),  # shared
        (0x02, 0x200000, 25, None),  # of a file
        (0x22, 0x200000, 4, None),
        (0x22, 0x1000, 3, "unconfigured-advice"),
        (0x21, 0x1000, 3, None),  # shared
        (0x02, 0x1000, 3, None),  # of a file
    ],
)
def test_only_anonymous_memory_may_differ_under_advice(flags: int, length: int, number: int, name: str | None) -> None:
    mapped = Mmap(seq="s", i=0, fd=0, length=length, prot=3, flags=flags, offset=0, out="map0")
    other = Mmap(seq="s", i=1, fd=0, length=0x400000, prot=3, flags=0x22, offset=0, out="map1")
    before = History(Begin(seq="s", i=-1, profile="612"), [mapped, other])
    divergence = divergence_of(advice(number), None, before)

    assert (None if divergence is None else divergence.name) == name


def test_every_divergence_has_a_name_of_its_own_a_subject_and_a_reason() -> None:
    assert len({divergence.name for divergence in DIVERGENCES}) == len(DIVERGENCES)
    assert all(divergence.subject and divergence.reason for divergence in DIVERGENCES)


def test_the_public_page_lists_each_of_them_and_no_other() -> None:
    page = (Path(__file__).parent.parent / "docs" / "divergences.md").read_text()
    rows = [row.split(" | ") for row in page.splitlines() if row.startswith("| ") and not row.startswith("| ---")][1:]

    assert [(row[0].removeprefix("| "), row[1], row[2], row[3].removesuffix(" |")) for row in rows] == [
        (divergence.name, divergence.subject, divergence.reason, "yes" if divergence.recognise else "no")
        for divergence in DIVERGENCES
    ]
