"""The rate of the time stamp counter is measured, or known to be unknown."""

from __future__ import annotations

import mmap
import platform
from itertools import count

import pytest

from guestmem.kvm import tsc


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the counter is x86's")
def test_two_measurements_agree() -> None:
    first, second = tsc.rate_khz(), tsc.rate_khz()
    assert first > 100_000, "no x86-64 processor counts slower than 100 MHz"
    assert abs(first - second) < first // 50


def test_the_rate_is_ticks_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, ticks = count(0, 1000), count(0, 6000)
    monkeypatch.setattr("guestmem.kvm.tsc.time.monotonic_ns", lambda: next(clock))
    assert tsc._reading(lambda: next(ticks)) == (0, 500), "the moment is in the middle of the two readings"


def test_where_code_may_not_be_made_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(mmap, "mmap", denied)
    assert tsc.rate_khz() == 0
