"""Layouts: one of 10,000 slots, and fleets of a million, by the vectorised path and by the scalar one.

The VMs of the fleet are made like QEMU's q35 (RAM around the hole, video memory, devices), in 427 shapes of sizes and
host addresses.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

from benchmarks.measure import median_us, say
from guestmem.layout import HostLimits, cover
from guestmem.layout.check import check
from guestmem.layout.fleet import check_fleet
from guestmem.layout.readers.own import read_fleet as read_layouts
from guestmem.layout.recognise import read, read_fleet
from guestmem.units import GIB, KIB, MIB

__all__ = ("fleets", "large_layout")

_SLOTS_A_VM = 10
_HVA = 0x7F0000000000


def large_layout() -> None:
    """A VM of 10,000 slots checked from its bytes, findings included; beside it, one of 1,000."""
    host = HostLimits()
    times = {}
    for slots in (1000, 10_000):
        document = json.dumps({"slots": [_device(index) for index in range(slots)]}).encode()

        def checked(document: bytes = document) -> None:
            for layout in read("large", document, "guestmem-json"):
                check(layout, host)

        times[slots] = median_us(checked, 5) / 1000
    ratio = times[10_000] / times[1000]
    say("check a layout of 10,000 slots", f"{times[10_000]:.0f} ms", f"1,000 slots: {times[1000]:.0f} ms, {ratio:.1f}x")


def fleets() -> None:
    """A million slots read and checked on one core; then the same slots, fewer of them, by the scalar path."""
    lines = list(_vms(100_000))
    jsonl = b"\n".join(json.dumps(vm).encode() for vm in lines)
    for name, data in (("JSON Lines", jsonl), ("Parquet", _parquet(lines))):
        rate = _rate(data)
        say(f"a fleet of 1,000,000 slots, {name}", f"{rate:,.0f} slots/s", "read and checked, one core")
    few = b"\n".join(json.dumps(vm).encode() for vm in lines[:10_000])
    host = HostLimits()
    fleet, layouts = read_fleet("few", few), read_layouts("few", few)
    if fleet is None:
        raise RuntimeError("a fleet is not recognised as one")
    vectorised = median_us(lambda: check_fleet(fleet, host), 5) / 1000
    scalar = median_us(lambda: [cover(layout, host) for layout in layouts], 3) / 1000
    compared = f"scalar {scalar:.0f} ms: {scalar / vectorised:.0f} times faster"
    say("coverage of 100,000 slots, vectorised", f"{vectorised:.0f} ms", compared)


def _rate(data: bytes) -> float:
    """Slots a second from bytes to sums."""

    def whole() -> None:
        fleet = read_fleet("fleet", data)
        if fleet is None or fleet.slots != 1_000_000:
            raise RuntimeError("the fleet was not read whole")
        check_fleet(fleet, HostLimits())

    return 1_000_000 / (median_us(whole, 3) / 1e6)


def _device(index: int) -> dict[str, Any]:
    """A slot of 1M to 8M whose GPA and HVA are sometimes congruent."""
    size = (1 + index % 8) * MIB
    return {"gpa": 16 * MIB * (index + 1), "size": size, "hva": _HVA + 16 * MIB * index + index % 3 * 4 * KIB}


def _vms(count: int) -> Iterator[dict[str, Any]]:
    for index in range(count):
        hva = _HVA + index % 7 * 512 * KIB
        low, high = 2 * GIB, (1 + index % 61) * 512 * MIB
        slots = [
            {"gpa": 0, "size": 640 * KIB, "hva": hva},
            {"gpa": MIB, "size": low - MIB, "hva": hva + MIB},
            {"gpa": 4 * GIB, "size": high, "hva": hva + low},
            {"gpa": 0xFD000000, "size": 16 * MIB, "hva": hva + 2 * low + high, "flags": ["log_dirty_pages"]},
        ]
        slots += [_device(16 * 1024 + n) | {"hva": hva + 64 * GIB + 16 * MIB * n} for n in range(_SLOTS_A_VM - 4)]
        yield {"name": f"vm{index}", "slots": slots}


def _parquet(vms: list[dict[str, Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    rows = [(vm["name"], slot) for vm in vms for slot in vm["slots"]]
    columns = {
        "vm": [name for name, _ in rows],
        "gpa": [slot["gpa"] for _, slot in rows],
        "size": [slot["size"] for _, slot in rows],
        "hva": [slot["hva"] for _, slot in rows],
        "flags": [int("flags" in slot) for _, slot in rows],
    }
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()
