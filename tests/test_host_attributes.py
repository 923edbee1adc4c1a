"""Private pages are read out of KVM's xarray, whatever its depth and however the slot lies in it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_world import MIB, P

from guestmem.host.attributes import private_bytes
from guestmem.host.kernel import KernelView
from guestmem.host.memory import RecordedMemory, Unreadable
from guestmem.host.slots import KernelSlot
from guestmem.host.structs import KernelStructs
from guestmem.uapi import KVM_MEMORY_ATTRIBUTE_PRIVATE

VM, NODES = 0xFFFF_8880_0000_0000, 0xFFFF_8880_1000_0000
SLOTS_AT, NODE = 24, 24 + 8 * 64
SHAPES = KernelStructs(
    {"kvm.mem_attr_array.xa_head": 8, "xa_node.shift": 5, "xa_node.slots": SLOTS_AT}, {}, {"xa_node.slots": 64}
)
PRIVATE, OTHER = KVM_MEMORY_ATTRIBUTE_PRIVATE << 1 | 1, 1 << 1 | 1  # value entries


class Array:
    """An xarray in memory as lib/xarray.c builds it: as many levels of 64 as the largest index needs."""

    def __init__(self, values: Mapping[int, int]) -> None:
        self.nodes: list[bytes] = []
        shift = 0
        while max(values, default=0) >> shift >= 64:
            shift += 6
        self.head = values[0] if set(values) == {0} else self._node(values, 0, shift) if values else 0

    def _node(self, values: Mapping[int, int], base: int, shift: int) -> int:
        entries = []
        for index in range(64):
            at = base + (index << shift)
            below = {gfn: value for gfn, value in values.items() if at <= gfn < at + (1 << shift)}
            entries.append(below.get(at, 0) if shift == 0 else self._node(below, at, shift - 6) if below else 0)
        return self._place(shift, entries)

    def _place(self, shift: int, entries: Iterable[int]) -> int:
        self.nodes.append(bytes(5) + bytes([shift]) + bytes(SLOTS_AT - 6) + struct.pack("<64Q", *entries))
        return NODES + NODE * (len(self.nodes) - 1) + 2

    def kernel(self) -> KernelView:
        return view(self.head, self.nodes)


def view(head: int, nodes: Iterable[bytes]) -> KernelView:
    memory = RecordedMemory({VM: struct.pack("<QQ", 0, head), NODES: b"".join(nodes) or b"\0"})
    return KernelView(memory, SHAPES)


def slot(gpa: int, size: int) -> KernelSlot:
    return KernelSlot(0, 0, gpa, size, 0, 4, (0, 0), (0, 0, 0))


def naive(private: set[int], gpa: int, size: int) -> list[int]:
    """Page by page."""
    frames = range(gpa // (2 * MIB), (gpa + size - 1) // (2 * MIB) + 1)
    gfns = range(gpa // P, (gpa + size) // P)
    return [P * sum(gfn in private for gfn in gfns if gfn // 512 == frame) for frame in frames]


@given(
    st.dictionaries(st.integers(0, 5000), st.sampled_from([PRIVATE, OTHER, PRIVATE | OTHER]), max_size=40),
    st.integers(0, 3000),
    st.integers(1, 3000),
)
def test_it_is_what_a_count_page_by_page_finds(values: dict[int, int], first: int, pages: int) -> None:
    found = private_bytes(Array(values).kernel(), VM, slot(first * P, pages * P))

    private = {gfn for gfn, value in values.items() if value >> 1 & KVM_MEMORY_ATTRIBUTE_PRIVATE}
    assert found is not None
    assert found.tolist() == naive(private, first * P, pages * P)


def test_an_entry_that_stands_for_many_pages_counts_for_each() -> None:
    """An entry one level up: 64 pages, of which the slot has the last two and six of the next."""
    array = Array({})
    array.head = array._place(6, [PRIVATE, PRIVATE, *[0] * 62])

    found = private_bytes(array.kernel(), VM, slot(62 * P, 8 * P))
    assert found is not None
    assert found.tolist() == [8 * P]


def test_a_kernel_without_attributes_says_so() -> None:
    kernel = KernelView(RecordedMemory({}), KernelStructs({}, {}))
    assert private_bytes(kernel, VM, slot(0, P)) is None


@pytest.mark.parametrize("head", [0, 6, 2 << 2 | 2, 0xFFFF_8880_0000_0004])
def test_what_is_no_node_and_no_value_is_nothing(head: int) -> None:
    found = private_bytes(view(head, []), VM, slot(0, 4 * MIB))
    assert found is not None
    assert not np.any(found)


def test_a_node_that_is_gone_is_unreadable() -> None:
    with pytest.raises(Unreadable):
        private_bytes(view(NODES + 2, []), VM, slot(0, P))
