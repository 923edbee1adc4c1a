"""Fleets as JSON Lines: one guestmem layout (``own``) a line.

VMs whose slots are plain numbers on plain memory become columns; a VM with anything else becomes a layout.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
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


@dataclass(slots=True)
class _Rows:
    """Columns while they are collected."""

    vm: array[int] = field(default_factory=lambda: array("q"))
    space: array[int] = field(default_factory=lambda: array("q"))
    gpa: array[int] = field(default_factory=lambda: array("Q"))
    size: array[int] = field(default_factory=lambda: array("Q"))
    hva: array[int] = field(default_factory=lambda: array("Q"))
    has_hva: array[int] = field(default_factory=lambda: array("B"))
    page_size: array[int] = field(default_factory=lambda: array("Q"))
    transparent: array[int] = field(default_factory=lambda: array("B"))
    dirty_log: array[int] = field(default_factory=lambda: array("B"))
    from_file: array[int] = field(default_factory=lambda: array("B"))

    def columns(self) -> Columns:
        """The collected rows as arrays."""

        def flags(values: array[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
            return np.frombuffer(values, np.uint8).astype(np.bool_) if values else np.zeros(0, np.bool_)

        return Columns(
            np.array(self.vm, np.int64),
            np.array(self.space, np.int64),
            np.array(self.gpa, np.uint64),
            np.array(self.size, np.uint64),
            np.array(self.hva, np.uint64),
            flags(self.has_hva),
            np.array(self.page_size, np.uint64),
            flags(self.transparent),
            flags(self.dirty_log),
            flags(self.from_file),
        )


def read(source: str, data: bytes) -> Fleet:
    """The fleet; a LayoutError names the line that cannot be read."""
    rows = _Rows()
    names: list[str] = []
    others: dict[int, Layout] = {}
    budget = Budget(source)
    for line, text in lines(source, data):
        if not text.strip():
            continue
        spec = decode_json(source, text, LayoutSpec, line=line)
        if not _add(rows, len(names), spec):
            others[len(names)] = budget.take(from_spec(f"{source}:{line}", spec))
        names.append(spec.name or f"line {line}")
        within(source, len(names), MAX_ROWS, "VMs", line=line)
        within(source, len(rows.vm), MAX_ROWS, "slots", line=line)
    return Fleet(source, "guestmem-fleet", names, rows.columns(), others)


def _add(rows: _Rows, index: int, spec: LayoutSpec) -> bool:
    """Add a VM's slots if all of them are plain; False leaves the rows as they were."""
    if spec.files or spec.private is not None or not all(map(_is_plain, spec.slots)) or _files_overlap(spec):
        return False
    for slot in spec.slots:
        backing = _PLAIN if slot.backing is None else Backing(slot.backing.kind, _int(slot.backing.page_size))
        rows.vm.append(index)
        rows.space.append(slot.address_space)
        rows.gpa.append(_int(slot.gpa))
        rows.size.append(_int(slot.size))
        rows.hva.append(_int_or_0(slot.hva))
        rows.has_hva.append(slot.hva is not None)
        rows.page_size.append(backing.page_size)
        rows.transparent.append(backing.transparent)
        rows.dirty_log.append(slot.flags in _LOGGED)
        rows.from_file.append(slot.file is not None)
    return True


def _is_plain(slot: SlotSpec) -> bool:
    """Whether all numbers are in range, and flags are none or, without a file, dirty logging alone."""
    if not (0 <= _int(slot.gpa) < U64 and 0 <= _int(slot.size) < U64 and 0 <= _int_or_0(slot.hva) < U64):
        return False
    if slot.backing is not None and not is_power_of_two(_int(slot.backing.page_size)):
        return False
    if slot.slot is not None or slot.address_space not in (0, 1) or not 0 <= _int_or_0(slot.offset) <= U64_MAX >> 2:
        return False
    return slot.flags in (0, []) or (slot.file is None and slot.flags in _LOGGED)


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
