"""BTF sections written by hand, for tests of what reads them (Documentation/bpf/btf.rst)."""

from __future__ import annotations

import struct

PTR, ARRAY, STRUCT, UNION, TYPEDEF, CONST, FUNC_PROTO = 2, 3, 4, 5, 8, 10, 13
INT = 1


class BtfWriter:
    """Types are numbered in the order in which they are added; a module's go on after ``types`` and ``strings``."""

    def __init__(self, types: int = 0, strings: int = 0) -> None:
        self._next = types + 1
        self._first_string = strings
        self.strings = b"\0" if not strings else b""
        self._types = b""

    @property
    def count(self) -> int:
        return self._next - 1

    def string(self, text: str) -> int:
        if not text:
            return 0
        at = self._first_string + len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def add(self, kind: int, name: str | int, size: int, tail: bytes = b"", vlen: int = 0, flag: bool = False) -> int:
        start = name if isinstance(name, int) else self.string(name)
        self._types += struct.pack("<III", start, vlen | kind << 24 | flag << 31, size) + tail
        self._next += 1
        return self._next - 1

    def integer(self, name: str, size: int) -> int:
        return self.add(INT, name, size, struct.pack("<I", size * 8))

    def array(self, element: int, count: int) -> int:
        return self.add(ARRAY, "", 0, struct.pack("<III", element, 1, count))

    def struct(
        self, name: str | int, size: int, *members: tuple[str, int, int], kind: int = STRUCT, widths: bool = False
    ) -> int:
        """Members are (name, type, bit offset); with ``widths`` the offset's top eight bits are a bit field's width."""
        tail = b"".join(struct.pack("<III", self.string(name), kind, at) for name, kind, at in members)
        return self.add(kind, name, size, tail, len(members), widths)

    def section(self) -> bytes:
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self._types), len(self._types), len(self.strings))
        return header + self._types + self.strings
