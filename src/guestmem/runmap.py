"""Run-length maps: half-open runs of integers that carry a value.

One structure serves everything in guest memory that is large but regular: attributes over frames, folios over a file,
bindings, stage-2 leaves, host mappings. Work costs what the runs cost, never what the range is long.

Invariant: runs are disjoint, non-empty, sorted, and two runs that touch have different values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from sortedcontainers import SortedList

__all__ = ("RunMap",)

V = TypeVar("V")


class RunMap(Generic[V]):
    """A map from integers to values, stored as runs; an integer without a value has None.

    >>> runs = RunMap[str]()
    >>> runs.set(0, 10, "a"); runs.set(4, 6, "b"); list(runs)
    [(0, 4, 'a'), (4, 6, 'b'), (6, 10, 'a')]
    >>> runs.clear(5, 8); list(runs)
    [(0, 4, 'a'), (4, 5, 'b'), (8, 10, 'a')]
    """

    __slots__ = ("_hit", "_runs", "_starts")

    def __init__(self) -> None:
        self._starts: SortedList[int] = SortedList()
        self._runs: dict[int, tuple[int, V]] = {}
        self._hit: tuple[int, int, V] | None = None  # the run found last: faults come in neighbourhoods

    def __len__(self) -> int:
        """How many runs there are."""
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int, V]]:
        return self.runs(0, None)

    def get(self, index: int) -> V | None:
        """The value at index, or None."""
        run = self.run_at(index)
        return None if run is None else run[2]

    def run_at(self, index: int) -> tuple[int, int, V] | None:
        """The run (start, end, value) that contains index, or None."""
        hit = self._hit
        if hit is not None and hit[0] <= index < hit[1]:
            return hit
        position = self._starts.bisect_right(index)
        if position == 0:
            return None
        start = self._starts[position - 1]
        end, value = self._runs[start]
        if index >= end:
            return None
        self._hit = start, end, value
        return self._hit

    def runs(self, start: int, end: int | None) -> Iterator[tuple[int, int, V]]:
        """The runs that intersect [start, end), clipped to it (end None: no limit). Do not change the map meanwhile."""
        position = max(self._starts.bisect_right(start) - 1, 0)
        for run_start in self._starts.islice(position):
            if end is not None and run_start >= end:
                return
            run_end, value = self._runs[run_start]
            if run_end > start:
                yield max(run_start, start), run_end if end is None else min(run_end, end), value

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The maximal parts of [start, end) without a value."""
        for run_start, run_end, _ in self.runs(start, end):
            if start < run_start:
                yield start, run_start
            start = run_end
        if start < end:
            yield start, end

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any integer of [start, end) has a value."""
        return next(self.runs(start, end), None) is not None

    def covers(self, start: int, end: int, value: V) -> bool:
        """Whether every integer of [start, end) has this value."""
        run = self.run_at(start)
        return run is not None and run[2] == value and end <= run[1]

    def total(self) -> int:
        """How many integers have a value."""
        return sum(end - start for start, (end, _) in self._runs.items())

    def set(self, start: int, end: int, value: V) -> None:
        """Give every integer of [start, end) this value, whatever it had."""
        assert start < end, f"bug in guestmem: empty run [{start:#x}, {end:#x})"
        if self._set_alone(start, end, value):
            return
        self.clear(start, end)
        before = self.run_at(start - 1)
        self._hit = None
        if before is not None and before[2] == value:
            start = before[0]
        else:
            self._starts.add(start)
        after = self._runs.get(end)
        if after is not None and after[1] == value:
            self._drop(end)
            end = after[0]
        self._runs[start] = end, value

    def clear(self, start: int, end: int) -> None:
        """Take the value from every integer of [start, end)."""
        first = self.run_at(start)
        self._hit = None
        if first is not None and first[0] < start:
            self._runs[first[0]] = start, first[2]
            if end < first[1]:
                self._add(end, first[1], first[2])
                return
            start = first[1]
        while (position := self._starts.bisect_left(start)) < len(self._starts):
            run_start = self._starts[position]
            if run_start >= end:
                return
            run_end, value = self._runs[run_start]
            self._drop(run_start)
            if run_end > end:
                self._add(end, run_end, value)
                return

    def check_invariants(self) -> None:
        """Raise AssertionError, with the whole map, if the runs are not disjoint, sorted, non-empty and merged."""
        previous: tuple[int, V] | None = None
        assert set(self._starts) == set(self._runs), f"bug in guestmem: {self!r}"
        for start in self._starts:
            end, value = self._runs[start]
            assert start < end, f"bug in guestmem: empty run at {start:#x} in {self!r}"
            if previous is not None:
                assert previous[0] <= start, f"bug in guestmem: runs overlap at {start:#x} in {self!r}"
                assert previous != (start, value), f"bug in guestmem: unmerged runs at {start:#x} in {self!r}"
            previous = end, value

    def __repr__(self) -> str:
        return f"RunMap({[(hex(start), hex(end), value) for start, end, value in self]})"

    def _set_alone(self, start: int, end: int, value: V) -> bool:
        """The common cases: the run before goes on, or nothing is there; and the next one is not reached."""
        position = self._starts.bisect_right(start)
        begin = start
        if position:
            before = self._starts[position - 1]
            before_end, before_value = self._runs[before]
            if before_end >= start:
                if before_value == value:
                    if end <= before_end:
                        return True
                    begin = before
                elif before_end > start:
                    return False
        if position < len(self._starts) and self._starts[position] <= end:
            return False
        if begin not in self._runs:
            self._starts.add(start)
        self._runs[begin] = end, value
        self._hit = None
        return True

    def _add(self, start: int, end: int, value: V) -> None:
        self._starts.add(start)
        self._runs[start] = end, value

    def _drop(self, start: int) -> None:
        self._starts.remove(start)
        del self._runs[start]
