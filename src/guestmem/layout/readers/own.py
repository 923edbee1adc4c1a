"""guestmem's own layout format: JSON or TOML, described by the JSON schema that ``guestmem schema`` prints.

Sizes and addresses are integers (bytes) or strings such as "2M" and "0x100000000"; unknown keys are refused, so that a
typing error is not a silent default. A fleet is JSON Lines with one layout a line. What is left out is an assumption in
the report: a slot without hva counts as congruent, a guest_memfd slot of a layout without ``private`` as all private.
"""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal

import msgspec

from guestmem.layout.budget import Budget
from guestmem.layout.error import LayoutError, printable
from guestmem.layout.placement import hva_assumption, private_assumption
from guestmem.layout.text import convert, decode_json, lines
from guestmem.layout.value import Assumption, Backing, BackingKind, File, Layout, Range, Slot
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
)
from guestmem.units import KIB, S64_MAX, U32_MAX, U64, is_power_of_two, parse_size

__all__ = ("FORMAT", "LayoutSpec", "from_spec", "read_fleet", "read_json", "read_toml", "schema")

FORMAT = "guestmem-layout/1"
_Number = Annotated[int, msgspec.Meta(ge=0)] | Annotated[str, msgspec.Meta(max_length=24)]
# As wide as the fields of the ioctls: the slot's number is the lower half of a u32, the address space the upper.
_U16 = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
_U32 = Annotated[int, msgspec.Meta(ge=0, le=U32_MAX)]
_FileFlags = Annotated[int, msgspec.Meta(ge=0, le=S64_MAX)]
SlotFlag = Literal["log_dirty_pages", "readonly", "guest_memfd"]
FileFlag = Literal["mmap", "init_shared"]
_MAX_DOTS = 100
_SLOT_FLAGS = {
    "log_dirty_pages": KVM_MEM_LOG_DIRTY_PAGES,
    "readonly": KVM_MEM_READONLY,
    "guest_memfd": KVM_MEM_GUEST_MEMFD,
}
_FILE_FLAGS = {"mmap": GUEST_MEMFD_FLAG_MMAP, "init_shared": GUEST_MEMFD_FLAG_INIT_SHARED}


class BackingSpec(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The host memory at a slot's HVA: what it is, and the page size it has for certain."""

    kind: BackingKind = "unknown"
    page_size: _Number = 4 * KIB


class SlotSpec(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A memslot. offset is where in the region, or in the guest_memfd ``file``, the slot starts."""

    gpa: _Number
    size: _Number
    hva: _Number | None = None
    offset: _Number | None = None
    flags: _U32 | list[SlotFlag] = 0
    region: str = ""
    file: str | None = None
    backing: BackingSpec | None = None
    slot: _U16 | None = None
    address_space: _U16 = 0


class FileSpec(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A guest_memfd. page_size is what it is made of where the kernel allows more than 4K (profile next)."""

    name: str
    size: _Number = 0
    flags: _FileFlags | list[FileFlag] = 0
    page_size: _Number = 0


class RangeSpec(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A guest-physical range with KVM_MEMORY_ATTRIBUTE_PRIVATE."""

    gpa: _Number
    size: _Number


class LayoutSpec(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The memslots of one VM, its guest_memfds, and the ranges that are private."""

    slots: list[SlotSpec]
    format: Literal["guestmem-layout/1"] = "guestmem-layout/1"
    name: str = ""
    files: list[FileSpec] = []
    private: list[RangeSpec] | None = None


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of a layout."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "guestmem layout",
        **msgspec.json.schema(LayoutSpec),
    }


def read_json(source: str, data: bytes) -> list[Layout]:
    """One layout as JSON."""
    return [from_spec(source, decode_json(source, data, LayoutSpec))]


def read_toml(source: str, data: bytes) -> list[Layout]:
    """One layout as TOML."""
    if any(text.count(".") > _MAX_DOTS for _, text in lines(source, data)):  # tomllib takes the square of a key's parts
        raise LayoutError(source, f"no line of a layout has more than {_MAX_DOTS} dots")
    try:
        value = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise LayoutError(source, f"needed TOML ({printable(error, 100)})") from None
    return [from_spec(source, convert(source, value, LayoutSpec))]


def read_fleet(source: str, data: bytes) -> list[Layout]:
    """JSON Lines, one layout a line."""
    budget = Budget(source)
    return [
        budget.take(from_spec(f"{source}:{line}", decode_json(source, text, LayoutSpec, line=line)))
        for line, text in lines(source, data)
        if text.strip()
    ]


def from_spec(source: str, spec: LayoutSpec) -> Layout:
    """The layout that a decoded document describes."""
    slots = tuple(_slot(source, f"slots[{index}]", slot) for index, slot in enumerate(spec.slots))
    files = tuple(_file(source, f"files[{index}]", file) for index, file in enumerate(spec.files))
    notes: tuple[Assumption, ...] = ()
    if spec.private is None:
        private, notes = private_assumption(list(slots))
    else:
        private = tuple(_range(source, f"private[{index}]", run) for index, run in enumerate(spec.private))
    without = list(dict.fromkeys(slot.region for slot in slots if slot.hva is None and slot.file is None))
    if without:
        notes = (*notes, hva_assumption([name or "unnamed slots" for name in without], "congruent with the GPA"))
    return Layout(source, "guestmem", slots, files, private, assumptions=notes, machine=spec.name)


def _slot(source: str, field: str, spec: SlotSpec) -> Slot:
    flags = _flags(spec.flags, _SLOT_FLAGS) | (KVM_MEM_GUEST_MEMFD if spec.file is not None else 0)
    offset = None if spec.offset is None else _number(source, f"{field}.offset", spec.offset)
    return Slot(
        gpa=_number(source, f"{field}.gpa", spec.gpa),
        size=_number(source, f"{field}.size", spec.size),
        hva=None if spec.hva is None else _number(source, f"{field}.hva", spec.hva),
        flags=flags,
        region=spec.region or spec.file or "",
        offset=0 if offset is None and spec.file is not None else offset,
        file=spec.file,
        backing=_backing(source, f"{field}.backing", spec.backing),
        number=spec.slot,
        address_space=spec.address_space,
    )


def _file(source: str, field: str, spec: FileSpec) -> File:
    page_size = _number(source, f"{field}.page_size", spec.page_size)
    if page_size and not is_power_of_two(page_size):
        raise LayoutError(source, "needed a power of two", field=f"{field}.page_size", value=spec.page_size)
    size = _number(source, f"{field}.size", spec.size)
    return File(spec.name, size, _flags(spec.flags, _FILE_FLAGS), page_size)


def _backing(source: str, field: str, spec: BackingSpec | None) -> Backing:
    if spec is None:
        return Backing()
    page_size = _number(source, f"{field}.page_size", spec.page_size)
    if not is_power_of_two(page_size):
        raise LayoutError(source, "needed a power of two", field=f"{field}.page_size", value=spec.page_size)
    return Backing(spec.kind, page_size)


def _range(source: str, field: str, spec: RangeSpec) -> Range:
    start, size = _number(source, f"{field}.gpa", spec.gpa), _number(source, f"{field}.size", spec.size)
    if size == 0 or start + size >= U64 or start % (4 * KIB) or size % (4 * KIB):
        needed = "needed whole 4K pages that end below 2**64, as KVM_SET_MEMORY_ATTRIBUTES does"
        raise LayoutError(source, needed, field=field, value=f"{spec.gpa}+{spec.size}")
    return Range(start, start + size)


def _flags(flags: int | list[Any], names: dict[str, int]) -> int:
    return flags if isinstance(flags, int) else sum({names[name] for name in flags})


def _number(source: str, field: str, value: int | str) -> int:
    try:
        number = parse_size(value) if isinstance(value, str) else value
    except ValueError as error:
        raise LayoutError(source, str(error), field=field) from None
    if not 0 <= number < U64:
        raise LayoutError(source, "needed a number from 0 to 2**64 - 1", field=field, value=value)
    return number
