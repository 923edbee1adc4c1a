"""The host's pages: how many of each order there are and how many are in use.

Invariant: ``0 <= used + reserved <= capacity`` for every order with a capacity, and splitting or freeing never makes or
loses a page. An order without a capacity is unlimited. Leaves out NUMA nodes, reclaim and per-cgroup limits.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ("HostPools",)


class HostPools:
    """Pages of the host by order; shared by every file of the machine."""

    __slots__ = ("_capacity", "_reserved", "_used")

    def __init__(self, capacity: Mapping[int, int] | None = None) -> None:
        self._capacity = dict(capacity or {})
        self._used: dict[int, int] = {}
        self._reserved: dict[int, int] = {}

    def take(self, order: int, count: int) -> int:
        """Take up to count pages of this order; how many there were."""
        free = self.free(order)
        if free is not None:
            count = min(count, free)
        self._used[order] = self._used.get(order, 0) + count
        return count

    def reserve(self, order: int, count: int) -> None:
        """Set free pages aside, which ``take`` then does not find; a negative count gives them back."""
        self._reserved[order] = self._reserved.get(order, 0) + count

    def give(self, order: int, count: int) -> None:
        """Give pages back."""
        self._used[order] -= count

    def split(self, order: int, count: int = 1) -> None:
        """Turn used pages of this order into used base pages, until they are merged; a negative count merges."""
        self._used[order] -= count
        self._used[0] = self._used.get(0, 0) + (count << order)
        if order in self._capacity:
            self._capacity[order] -= count
        if 0 in self._capacity:
            self._capacity[0] += count << order

    def used(self) -> dict[int, int]:
        """Pages in use by order, without the orders that have none."""
        return {order: count for order, count in sorted(self._used.items()) if count}

    def free(self, order: int) -> int | None:
        """Free pages of this order; None without a limit."""
        capacity = self._capacity.get(order)
        return None if capacity is None else capacity - self._used.get(order, 0) - self._reserved.get(order, 0)

    def check_invariants(self) -> None:
        """Raise AssertionError if a pool is overdrawn."""
        for order, used in self._used.items():
            free = self.free(order)
            assert used >= 0 and (free is None or free >= 0), (
                f"bug in guestmem: {used} pages of order {order} used, {free} free"
            )
