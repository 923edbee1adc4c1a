"""What a look at the host found, as ``guestmem host --json`` writes it and as a saved file holds it.

Addresses are "0x..." strings, sizes are bytes. ``possible`` counts bytes that can be mapped with pages of that size *or
larger*, as in ``guestmem check``; ``mapped`` counts each byte once, under the size it is mapped with. ``lost`` are
bytes that are mapped with smaller pages than ``level``: memory that was never touched is not lost. No kernel address
and no command line is in it.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

__all__ = (
    "FORMAT",
    "BackingEntry",
    "GuestMemfdEntry",
    "HostReport",
    "HostSlot",
    "HostVm",
    "SlotStrip",
    "MappedLost",
    "VmTotals",
    "host_schema",
)

FORMAT: Final = "guestmem-host/1"
SIZES = ("4K", "2M", "1G")


class MappedLost(msgspec.Struct, frozen=True):
    """Bytes that are mapped with smaller pages than ``level``, for one reason."""

    level: str
    reason: str
    bytes: int


class GuestMemfdEntry(msgspec.Struct, frozen=True):
    """The guest_memfd behind a slot: where in it the slot starts, its size, and the number that tells files apart."""

    offset: str
    size: int = 0
    inode: int = 0


class BackingEntry(msgspec.Struct, frozen=True):
    """The host's side: kind and page size for certain; thp: whether transparent huge pages may come (null: unknown).

    huge: host-virtual ranges [start, end) that the host maps by 2M or larger now; null where the kernel cannot tell.
    """

    kind: str
    page_size: int
    thp: bool | None
    huge: list[tuple[str, str]] | None


class SlotStrip(msgspec.Struct, frozen=True):
    """The slot in equal shares, one character each: "1" 1G, "2" 2M, "4" 4K, "." nothing. At most 128."""

    possible: str
    host: str
    mapped: str


class HostSlot(msgspec.Struct, frozen=True):
    """One memslot; ``region`` names the mapping that it is a window on, ``offset`` where in it the slot starts.

    private: bytes that only the guest may use, null where the kernel keeps no attributes for the slot.
    """

    gpa: str
    size: int
    hva: str
    flags: int
    address_space: int
    guest_memfd: GuestMemfdEntry | None
    possible: dict[str, int]
    mapped: dict[str, int]
    lost: list[MappedLost]
    slot: int = 0
    region: str = ""
    offset: str = "0x0"
    backing: BackingEntry | None = None
    strip: SlotStrip | None = None
    private: int | None = None


class VmTotals(msgspec.Struct, frozen=True):
    """Sums over the slots of address space 0; size is null where only KVM's counters could be read.

    leaves: page-table leaves that the walk found, in all address spaces. counted: how many KVM counts.
    """

    size: int | None
    possible: dict[str, int]
    mapped: dict[str, int]
    lost: list[MappedLost]
    leaves: dict[str, int]
    counted: dict[str, int]


class HostVm(msgspec.Struct, frozen=True):
    """One VM. note says what could not be read, "" where everything was. type is KVM_CREATE_VM's; null before types."""

    pid: int
    name: str
    slots: list[HostSlot]
    totals: VmTotals
    vmm: str = ""
    type: int | None = None
    note: str = ""


class HostReport(msgspec.Struct, frozen=True):
    """Every VM of the host. exact: the leaves that were found are as many as KVM counts, for every VM."""

    format: Literal["guestmem-host/1"]
    vms: list[HostVm]
    reader: str
    seconds: float
    exact: bool


def host_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of the report."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "guestmem host",
        **msgspec.json.schema(HostReport),
    }
