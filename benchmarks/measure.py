"""Times and lines: what every measurement shares."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

__all__ = ("median_us", "say")


def median_us(action: Callable[[], object], repeat: int) -> float:
    """Median time of one call, microseconds."""
    times = []
    for _ in range(repeat):
        begin = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - begin)
    return statistics.median(times) / 1000


def say(what: str, figure: str, compared: str = "") -> None:
    """One line of the report."""
    print(f"{what:<52} {figure:>14}  {compared}")
