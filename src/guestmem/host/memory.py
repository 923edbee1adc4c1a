"""Kernel memory behind one small interface: who reads it does not matter to what is read from it.

Recorded memory answers from what an earlier look read, so that the whole look runs in a test without any kernel.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

__all__ = ("PAGE", "KernelMemory", "RecordedMemory", "Unreadable", "u32", "u64", "walk_list")

PAGE = 4096


class Unreadable(Exception):
    """Nothing can be read at this address: it is not mapped, or no longer."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"{length} bytes of kernel memory cannot be read")
        self.address = address
        self.length = length


class KernelMemory(Protocol):
    """Reads of kernel virtual addresses. ``name`` is what reports call it: "kcore", "bpf", "recorded"."""

    name: str

    def read(self, address: int, length: int) -> bytes:
        """``length`` bytes, or Unreadable."""
        ...

    def read_pages(self, addresses: Sequence[int]) -> tuple[bytes, list[int]]:
        """The 4K pages at these addresses one after the other, and the indexes of those that cannot be read (zeros)."""
        ...

    def close(self) -> None:
        """Give back what was opened. Reading afterwards is an error."""
        ...


class RecordedMemory:
    """Ranges of bytes by address; what is outside of them is Unreadable."""

    name = "recorded"

    def __init__(self, ranges: Mapping[int, bytes]) -> None:
        self._ranges = dict(sorted(ranges.items()))
        self._starts = list(self._ranges)
        self._longest = max(map(len, self._ranges.values()), default=0)

    def read(self, address: int, length: int) -> bytes:
        """From the one recorded range that holds all of it."""
        whole = self._ranges.get(address)
        if whole is not None and len(whole) >= length:
            return whole[:length]
        index = bisect_right(self._starts, address) - 1
        while index >= 0 and self._starts[index] > address - self._longest:
            skip = address - self._starts[index]
            data = self._ranges[self._starts[index]]
            if skip + length <= len(data):
                return data[skip : skip + length]
            index -= 1
        raise Unreadable(address, length)

    def read_pages(self, addresses: Sequence[int]) -> tuple[bytes, list[int]]:
        """As KernelMemory says."""
        return pages_one_by_one(self, addresses)

    def close(self) -> None:
        """Nothing was opened."""


class _Reads(Protocol):
    def read(self, address: int, length: int) -> bytes: ...


def pages_one_by_one(memory: _Reads, addresses: Sequence[int]) -> tuple[bytes, list[int]]:
    """``read_pages`` for readers that have no better way than one read for each page."""
    parts, failed = [], []
    for index, address in enumerate(addresses):
        try:
            parts.append(memory.read(address, PAGE))
        except Unreadable:
            parts.append(bytes(PAGE))
            failed.append(index)
    return b"".join(parts), failed


def u32(data: bytes, offset: int = 0) -> int:
    """A little-endian u32."""
    return int.from_bytes(data[offset : offset + 4], "little")


def u64(data: bytes, offset: int = 0) -> int:
    """A little-endian u64: a number or a pointer."""
    return int.from_bytes(data[offset : offset + 8], "little")


def walk_list(memory: KernelMemory, head: int, offset: int, limit: int) -> Iterator[int]:
    """The structures on a list_head at ``head``, whose link lies ``offset`` bytes in them; at most ``limit``.

    A head of zeros was never initialised and counts as empty.
    """
    at = u64(memory.read(head, 8))
    for _ in range(limit):
        if at in (0, head):
            return
        yield at - offset
        at = u64(memory.read(at, 8))
