"""A counterexample as something one can run: a layout for ``guestmem check``, a recording for ``guestmem run``.

The recording sets the slot under profile next with the rule that was asked about, and touches the page; outcomes are
left out, so that running it shows them. Counterexamples of the signed arithmetic are a recording for profile v6.18.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from guestmem.geometry import GEOMETRIES
from guestmem.proofs.example import Example
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_HUGE_PAGES,
    GUEST_MEMFD_FLAG_SHMEM,
    GUEST_MEMFD_HUGE_SHIFT,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
)

__all__ = ("layout", "recording", "signed_recording")


def layout(example: Example, name: str) -> str:
    """TOML, guestmem's own format."""
    return "\n".join(
        [
            'format = "guestmem-layout/1"',
            f'name = "{name}"',
            "",
            "[[files]]",
            'name = "ram"',
            f'size = "{example.file_size:#x}"',
            f'page_size = "{example.page:#x}"',
            "",
            "[[slots]]",
            f'gpa = "{example.gpa:#x}"',
            f'size = "{example.size:#x}"',
            'file = "ram"',
            f'offset = "{example.offset:#x}"',
            "",
        ]
    )


def recording(example: Example, name: str, rule: str = "") -> str:
    """JSON Lines: one sequence under profile next. rule "" leaves out the rule; the default one is then asked."""
    return _lines(name, "next", _operations(example), rule=rule, geometry=_geometry(example), gpa_bits=52)


def signed_recording(example: Example, name: str) -> str:
    """JSON Lines: one sequence under profile v6.18, up to the slot."""
    operations = [
        {"op": "create_vm", "type": KVM_X86_DEFAULT_VM, "out": "vm0"},
        {"op": "create_guest_memfd", "vm": "vm0", "size": example.file_size, "flags": 0, "out": "gm0"},
        _slot(example),
    ]
    return _lines(name, "v6.18", iter(operations))


def _operations(example: Example) -> Iterator[dict[str, Any]]:
    gpa = example.gpa + example.into
    yield {"op": "create_vm", "type": KVM_X86_SW_PROTECTED_VM, "out": "vm0"}
    yield {"op": "create_guest_memfd", "vm": "vm0", "size": example.file_size, "flags": _flags(example), "out": "gm0"}
    changes = example.backing != example.page or example.folio_size != example.page
    if changes:
        yield {"op": "set_huge_page_size", "fd": "gm0", "page_size": example.backing}
    yield _slot(example)
    yield {
        "op": "set_memory_attributes",
        "vm": "vm0",
        "address": example.gpa,
        "size": example.size,
        "attributes": KVM_MEMORY_ATTRIBUTE_PRIVATE,
        "flags": 0,
    }
    if changes:
        yield {"op": "set_huge_page_size", "fd": "gm0", "page_size": example.folio_size}
    yield {"op": "create_vcpu", "vm": "vm0", "id": 0, "out": "vcpu0"}
    touch = {"gpa": gpa, "rw": "r", "size": 8}
    yield {"op": "run_touch", "vm": "vm0", "vcpu": "vcpu0", "boot_gpa": 0, "touches": [touch]}


def _slot(example: Example) -> dict[str, Any]:
    return {
        "op": "set_user_memory_region2",
        "vm": "vm0",
        "slot": 0,
        "flags": KVM_MEM_GUEST_MEMFD,
        "gpa": example.gpa,
        "size": example.size,
        "userspace_addr": {"abs": 0},
        "guest_memfd": "gm0",
        "guest_memfd_offset": example.offset,
    }


def _flags(example: Example) -> int:
    page = GUEST_MEMFD_FLAG_HUGE_PAGES | (example.page.bit_length() - 1) << GUEST_MEMFD_HUGE_SHIFT
    return page | (
        GUEST_MEMFD_FLAG_SHMEM if example.backing != example.page or example.folio_size != example.page else 0
    )


def _geometry(example: Example) -> str:
    return example.geometry.name if example.geometry.name in GEOMETRIES else ""


def _lines(name: str, profile: str, operations: Iterator[dict[str, Any]], **begin: Any) -> str:
    lines = [{"op": "begin", "seq": name, "i": -1, "profile": profile, **{k: v for k, v in begin.items() if v}}]
    lines += [{**operation, "seq": name, "i": i} for i, operation in enumerate(operations)]
    return "".join(f"{json.dumps(line)}\n" for line in lines)
