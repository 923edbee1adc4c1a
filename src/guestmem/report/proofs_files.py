"""A counterexample as something one can run: a layout for ``guestmem check``, a recording for ``guestmem run``.

The recording sets the slot with the rule that was asked about, and touches the page; outcomes are left out, so that
running it shows them. Its profile is next; it is restrictedmem, where the host may change the page that a file takes,
if that is what it takes; and for counterexamples of the signed arithmetic v6.18.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from guestmem.geometry import GEOMETRIES, Geometry
from guestmem.outfile import write_text
from guestmem.proofs.answers import Answer
from guestmem.proofs.example import Example
from guestmem.proofs.verdict import Refuted
from guestmem.uapi import (
    GUEST_MEMFD_FLAG_HUGETLB,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_X86_DEFAULT_VM,
    KVM_X86_SW_PROTECTED_VM,
    RMFD_HUGE_SHIFT,
)

__all__ = ("layout", "recording", "write_counterexamples")


def write_counterexamples(directory: Path, geometry: Geometry, answers: Iterable[Answer]) -> None:
    """Write NAME.toml and NAME.jsonl into the directory for each counterexample; makes the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for each in answers:
        if text := layout(geometry, each):
            write_text(directory / f"{_name(each)}.toml", f"# {each.explanation}.\n{text}")
            write_text(directory / f"{_name(each)}.jsonl", recording(geometry, each))


def layout(geometry: Geometry, answer: Answer) -> str:
    """TOML, guestmem's own format; "" for an answer without a slot that refutes it."""
    example = _example(geometry, answer)
    if example is None:
        return ""
    return f"""format = "guestmem-layout/1"
name = "{_name(answer)}"

[[files]]
name = "ram"
size = "{example.file_size:#x}"
page_size = "{example.page:#x}"

[[slots]]
gpa = "{example.gpa:#x}"
size = "{example.size:#x}"
file = "ram"
offset = "{example.offset:#x}"
"""


def recording(geometry: Geometry, answer: Answer) -> str:
    """JSON Lines, one sequence; "" for an answer without a slot that refutes it."""
    example = _example(geometry, answer)
    if example is None:
        return ""
    name = _name(answer)
    if name.startswith("signed-"):
        return _lines(name, "v6.18", _signed(example))
    place = geometry.name if geometry.name in GEOMETRIES else ""
    profile = "restrictedmem" if _backing_changes(example) else "next"
    return _lines(name, profile, _operations(example), rule=answer.rule, geometry=place, gpa_bits=52)


def _example(geometry: Geometry, answer: Answer) -> Example | None:
    # An implication that does not hold is how the lattice looks, not something to try.
    if answer.kind == "implies" or not isinstance(answer.verdict, Refuted):
        return None
    return Example(geometry, answer.verdict.values)


def _name(answer: Answer) -> str:
    return f"{answer.subject}-{answer.rule}" if answer.rule else answer.subject


def _signed(example: Example) -> Iterator[dict[str, Any]]:
    yield {"op": "create_vm", "type": KVM_X86_DEFAULT_VM, "out": "vm0"}
    yield {"op": "create_guest_memfd", "vm": "vm0", "size": example.file_size, "flags": 0, "out": "gm0"}
    yield _slot(example)


def _operations(example: Example) -> Iterator[dict[str, Any]]:
    gpa = example.gpa + example.into
    yield {"op": "create_vm", "type": KVM_X86_SW_PROTECTED_VM, "out": "vm0"}
    yield from _restrictedmem(example) if _backing_changes(example) else [_guest_memfd(example)]
    yield _slot(example)  # what a guest_memfd has is private already
    if _backing_changes(example):
        yield _private(example)
        yield _shmem_takes(example.folio_size)
    yield {"op": "create_vcpu", "vm": "vm0", "id": 0, "out": "vcpu0"}
    touch = {"gpa": gpa, "rw": "r", "size": 8}
    yield {"op": "run_touch", "vm": "vm0", "vcpu": "vcpu0", "boot_gpa": 0, "touches": [touch]}


def _guest_memfd(example: Example) -> dict[str, Any]:
    order = example.geometry.order_of(example.page)
    huge = {"flags": GUEST_MEMFD_FLAG_HUGETLB, "reserved": [order]} if order else {"flags": 0}
    return {"op": "create_guest_memfd", "vm": "vm0", "size": example.file_size, **huge, "out": "gm0"}


def _restrictedmem(example: Example) -> Iterator[dict[str, Any]]:
    flags = (example.page.bit_length() - 1) << RMFD_HUGE_SHIFT
    yield {"op": "memfd_restricted", "flags": flags, "out": "gm0"}
    yield {"op": "ftruncate", "fd": "gm0", "length": example.file_size}
    yield _shmem_takes(example.backing)


def _private(example: Example) -> dict[str, Any]:
    return {
        "op": "set_memory_attributes",
        "vm": "vm0",
        "address": example.gpa,
        "size": example.size,
        "attributes": KVM_MEMORY_ATTRIBUTE_PRIVATE,
        "flags": 0,
    }


def _shmem_takes(page_size: int) -> dict[str, Any]:
    return {"op": "set_shmem_enabled", "policy": "always", "page_size": page_size}


def _slot(example: Example) -> dict[str, Any]:
    return {
        "op": "set_user_memory_region2",
        "vm": "vm0",
        "slot": 0,
        "flags": KVM_MEM_GUEST_MEMFD,
        "gpa": example.gpa,
        "size": example.size,
        "userspace_addr": {"abs": example.gpa % max(example.geometry.page_sizes)},
        "guest_memfd": "gm0",
        "guest_memfd_offset": example.offset,
    }


def _backing_changes(example: Example) -> bool:
    return example.backing != example.page or example.folio_size != example.page


def _lines(name: str, profile: str, operations: Iterator[dict[str, Any]], **begin: Any) -> str:
    lines = [{"op": "begin", "seq": name, "i": -1, "profile": profile, **{k: v for k, v in begin.items() if v}}]
    lines += [{**operation, "seq": name, "i": i} for i, operation in enumerate(operations)]
    return "".join(f"{json.dumps(line)}\n" for line in lines)
