"""Fleets as JSON Lines: one guestmem layout (``own``) a line.

VMs whose slots are plain numbers on plain memory become columns; a VM with anything else becomes a layout.
"""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np

from guestmem.layout.budget import MAX_ROWS, Budget, within
from guestmem.layout.fleet import Fleet
from guestmem.layout.readers.own import LayoutSpec, SlotSpec, from_spec
from guestmem.layout.text import decode_json, lines
from guestmem.layout.value import Backing, Layout
from guestmem.layout.vector import Columns
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import U64, U64_MAX, is_power_of_two

__all__ = ("read",)

_LOGGED = (KVM_MEM_LOG_DIRTY_PAGES, ["log_dirty_pages"])
_PLAIN = Backing()


# The columns while they are collected, in the order of Columns.
_Row = tuple[int, int, int, int, int, bool, int, bool, bool, bool]
_CODES = "qqQQQBQBBB"
_TYPES = {"q": np.int64, "Q": np.uint64, "B": np.bool_}


def read(source: str, data: bytes) -> Fleet:
    """The fleet; a LayoutError names the line that cannot be read."""
    columns = [array(code) for code in _CODES]
    names: list[str] = []
    others: dict[int, Layout] = {}
    budget = Budget(source)
    for line, text in lines(source, data):
        if not text.strip():
            continue
        spec = decode_json(source, text, LayoutSpec, line=line)
        rows = _rows(len(names), spec)
        if rows is None:
            others[len(names)] = budget.take(from_spec(f"{source}:{line}", spec))
        for column, values in zip(columns, zip(*rows or (), strict=True), strict=False):  # no values of no rows
            column.extend(values)
        names.append(spec.name or f"line {line}")
        within(source, len(names), MAX_ROWS, "VMs", line=line)
        within(source, len(columns[0]), MAX_ROWS, "slots", line=line)
    taken = Columns(*(np.array(column, _TYPES[column.typecode]) for column in columns))
    return Fleet(source, "guestmem-fleet", names, taken, others)


def _rows(vm: int, spec: LayoutSpec) -> list[_Row] | None:
    """The slots of VM number vm if all of them are plain."""
    if spec.files or spec.private is not None or _files_overlap(spec):
        return None
    rows = []
    for slot in spec.slots:
        row = _row(vm, slot)
        if row is None:
            return None
        rows.append(row)
    return rows


def _row(vm: int, slot: SlotSpec) -> _Row | None:
    """The slot if all numbers are in range, and flags are none or, without a file, dirty logging alone."""
    gpa, size, hva, offset = _int(slot.gpa), _int(slot.size), _int_or_0(slot.hva), _int_or_0(slot.offset)
    if not (0 <= gpa < U64 and 0 <= size < U64 and 0 <= hva < U64 and 0 <= offset <= U64_MAX >> 2):
        return None
    if slot.slot is not None or slot.address_space not in (0, 1):
        return None
    logged = slot.flags in _LOGGED
    if not (slot.flags in (0, []) or (slot.file is None and logged)):
        return None
    backing = _PLAIN
    if slot.backing is not None:
        backing = Backing(slot.backing.kind, _int(slot.backing.page_size))
        if not is_power_of_two(backing.page_size):
            return None
    known, bound = slot.hva is not None, slot.file is not None
    return vm, slot.address_space, gpa, size, hva, known, backing.page_size, backing.transparent, logged, bound


def _files_overlap(spec: LayoutSpec) -> bool:
    """Whether bindings of one file touch bytes twice or are unaligned, which KVM refuses."""
    bound = sorted((slot.file, _int_or_0(slot.offset), _int(slot.size)) for slot in spec.slots if slot.file is not None)
    return any(at % 4096 for _, at, _ in bound) or any(
        low[0] == high[0] and low[1] + low[2] > high[1] for low, high in pairwise(bound)
    )


def _int_or_0(value: int | str | None) -> int:
    return 0 if value is None else _int(value)


def _int(value: int | str) -> int:
    """The number; -1 for text that is not plain hex, which the scalar reader judges."""
    if isinstance(value, int):
        return value
    try:
        return int(value, 16) if value.startswith("0x") else -1
    except ValueError:
        return -1
