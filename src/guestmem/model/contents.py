"""Sparse bytes: the contents of memory that is mostly zero.

What was never written, or was punched out, reads as zero and costs nothing. Offsets are bytes.
"""

from __future__ import annotations

__all__ = ("Contents",)

_CHUNK = 4096  # storage unit; nothing outside sees it


class Contents:
    """A byte array of any length in which only written chunks exist."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: dict[int, bytearray] = {}

    def read(self, offset: int, size: int) -> int:
        """size bytes at offset as a little-endian number."""
        within = offset % _CHUNK
        if within + size > _CHUNK:
            low = _CHUNK - within
            return self.read(offset, low) | self.read(offset + low, size - low) << 8 * low
        chunk = self._chunks.get(offset // _CHUNK)
        return self._absent(offset, size) if chunk is None else int.from_bytes(chunk[within : within + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """Store the low size bytes of value at offset, little-endian."""
        within = offset % _CHUNK
        if within + size > _CHUNK:
            low = _CHUNK - within
            self.write(offset, low, value)
            self.write(offset + low, size - low, value >> 8 * low)
            return
        chunk = self._chunks.get(offset // _CHUNK)
        if chunk is None:
            chunk = self._chunks[offset // _CHUNK] = self._fresh(offset - within, _CHUNK)
        chunk[within : within + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    def zero(self, start: int, end: int) -> None:
        """Make [start, end) zero again; both are multiples of 4 KiB."""
        first, last = start // _CHUNK, end // _CHUNK
        if last - first < len(self._chunks):
            for number in range(first, last):
                self._chunks.pop(number, None)
        else:
            for number in [number for number in self._chunks if first <= number < last]:
                del self._chunks[number]

    def _absent(self, offset: int, size: int) -> int:
        """What bytes read as that were never written."""
        return 0

    def _fresh(self, offset: int, size: int) -> bytearray:
        """A part that is about to be written for the first time."""
        return bytearray(size)

    def written(self) -> list[int]:
        """Byte offsets of the 4 KiB chunks that were written, ascending."""
        return sorted(number * _CHUNK for number in self._chunks)
