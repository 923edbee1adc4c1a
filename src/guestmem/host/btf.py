"""BTF, the kernel's own description of its types: where a member of a structure lies, and how large a type is.

Read are /sys/kernel/btf/vmlinux and, for a module, its *split* BTF, whose type numbers and string offsets go on where
those of vmlinux end (Documentation/bpf/btf.rst, include/uapi/linux/btf.h). Parsing is one pass that notes where each
type starts; everything else is looked up when it is asked for.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ("Btf", "BtfError", "Member")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")  # name, info, size or type
_ARRAY, _STRUCT, _UNION, _POINTER = 3, 4, 5, 2
_ALIASES = frozenset((8, 9, 10, 11, 18))  # typedef, volatile, const, restrict, type tag
# Bytes that follow the twelve of a type: fixed, and for each of the vlen things it counts.
_TAIL = {1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0)}
_TAIL[19] = (0, 12)
_LAST_KIND = 19
_POINTER_SIZE = 8
_MAX_DEPTH = 64  # of aliases and of structures in structures: more is no kernel's


class BtfError(ValueError):
    """The data is no BTF, or does not describe what was asked for."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member of a structure: where it starts in it (bits), the number of its type, its width if a bit field, or 0."""

    start: int
    type: int
    width: int


@dataclass(frozen=True, slots=True)
class _Type:
    kind: int
    vlen: int
    bit_fields: bool
    size: int  # bytes, or the number of the type it refers to
    tail: int  # where what follows the head starts in data
    data: bytes


class Btf:
    """One BTF section; ``base`` is vmlinux's where this is a module's."""

    def __init__(self, data: bytes, base: Btf | None = None) -> None:
        if len(data) < _HEADER.size:
            raise BtfError("needed BTF: the data ends in its header")
        magic, _, _, header, types, types_size, strings, strings_size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise BtfError(f"needed BTF: the data starts with {magic:#x}, not {_MAGIC:#x}")
        first, end = header + types, header + types + types_size
        if end > len(data) or header + strings + strings_size > len(data):
            raise BtfError("needed BTF: the data ends before its header says")
        self._data = data
        self._base = base
        self._strings = data[header + strings : header + strings + strings_size]
        self._first_string: int = 0 if base is None else base._first_string + len(base._strings)
        self._first_id: int = 1 if base is None else base._first_id + len(base._places)
        self._places: array[int]
        self._places, self._structs = _places(data, first, end)
        self._known: dict[str, int | None] = {}

    def struct(self, name: str) -> int | None:
        """The number of the structure or union of this name; a module's own comes before vmlinux's."""
        if name not in self._known:
            found = self._own_struct(name)
            self._known[name] = self._base.struct(name) if found is None and self._base is not None else found
        return self._known[name]

    def member(self, struct_name: str, path: str) -> Member | None:
        """The member that ``path`` ("arch.tdp_mmu_roots") names; those of anonymous members count as the outer's."""
        number = self.struct(struct_name)
        start = width = 0
        for name in path.split("."):
            found = None if number is None else self._find(number, name, 0)
            if found is None:
                return None
            start, number, width = start + found.start, found.type, found.width
        return None if number is None else Member(start, number, width)

    def members(self, number: int) -> Iterator[tuple[str, Member]]:
        """Every named member of a structure by its own name, without those of anonymous members."""
        for name, member in self._members(number):
            if name:
                yield name, member

    def size(self, number: int) -> int:
        """Bytes of a type."""
        kind = self._type(self._resolved(number))
        if kind.kind == _POINTER:
            return _POINTER_SIZE
        if kind.kind == _ARRAY:
            element, _, count = _TYPE.unpack_from(kind.data, kind.tail)
            return int(count) * self.size(element)
        return kind.size

    def length(self, number: int) -> int:
        """Elements of an array type."""
        kind = self._type(self._resolved(number))
        if kind.kind != _ARRAY:
            raise BtfError(f"type {number} is no array")
        return int(_TYPE.unpack_from(kind.data, kind.tail)[2])

    def _own_struct(self, name: str) -> int | None:
        places = (self._structs.get(start) for start in self._offsets(name))
        return next((self._first_id + place for place in places if place is not None), None)

    def _offsets(self, name: str) -> Iterator[int]:
        """Where the name stands in the strings, this section's and the base's: names are kept once in each."""
        at = self._strings.find(b"\0" + name.encode() + b"\0")
        if at >= 0:
            yield self._first_string + at + 1
        if self._base is not None:
            yield from self._base._offsets(name)

    def _find(self, number: int, name: str, depth: int) -> Member | None:
        if depth > _MAX_DEPTH:
            raise BtfError("structures are nested without end")
        for own, member in self._members(number):
            if own == name:
                return member
            if not own:
                inner = self._find(member.type, name, depth + 1)
                if inner is not None:
                    return Member(member.start + inner.start, inner.type, inner.width)
        return None

    def _members(self, number: int) -> Iterator[tuple[str, Member]]:
        outer = self._type(self._resolved(number))
        if outer.kind not in (_STRUCT, _UNION):
            return
        for index in range(outer.vlen):
            name, kind, place = _TYPE.unpack_from(outer.data, outer.tail + 12 * index)
            start, width = (place & 0xFFFFFF, place >> 24) if outer.bit_fields else (place, 0)
            yield self._string(name), Member(start, kind, width)

    def _resolved(self, number: int) -> int:
        for _ in range(_MAX_DEPTH):
            kind = self._type(number)
            if kind.kind not in _ALIASES:
                return number
            number = kind.size
        raise BtfError("types name each other without end")

    def _type(self, number: int) -> _Type:
        if number < self._first_id and self._base is not None:
            return self._base._type(number)
        if not self._first_id <= number < self._first_id + len(self._places):
            raise BtfError(f"there is no type {number}")
        at = self._places[number - self._first_id]
        _, info, size = _TYPE.unpack_from(self._data, at)
        return _Type(info >> 24 & 31, info & 0xFFFF, bool(info >> 31), size, at + _TYPE.size, self._data)

    def _string(self, offset: int) -> str:
        if offset < self._first_string and self._base is not None:
            return self._base._string(offset)
        start = offset - self._first_string
        end = self._strings.find(b"\0", start)
        return self._strings[start:end].decode("ascii", "replace")


def _places(data: bytes, first: int, end: int) -> tuple[array[int], dict[int, int]]:
    """Where each type starts, and the first structure or union of each name: heads are of one size, tails are not."""
    fixed = [_TAIL.get(kind, (0, 0))[0] + _TYPE.size for kind in range(32)]
    each = [_TAIL.get(kind, (0, 0))[1] for kind in range(32)]
    places = array("Q")
    structs: dict[int, int] = {}
    note, head = places.append, struct.Struct("<II").unpack_from
    at, highest = first, 0
    try:
        while at < end:
            name, info = head(data, at)
            kind = info >> 24 & 31
            if kind in (_STRUCT, _UNION):
                structs.setdefault(name, len(places))
            elif kind > highest:
                highest = kind
            note(at)
            at += fixed[kind] + each[kind] * (info & 0xFFFF)
    except struct.error:
        raise BtfError("needed BTF: the data ends in a type") from None
    if at != end or highest > _LAST_KIND:
        raise BtfError("needed BTF: there is a type of a kind that is not known")
    return places, structs
