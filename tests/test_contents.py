"""Sparse bytes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmem.model.contents import Contents


def test_what_was_never_written_reads_zero_and_costs_nothing() -> None:
    contents = Contents()

    assert [contents.read(offset, 8) for offset in (0, 4096, (1 << 63) - 8)] == [0, 0, 0]
    assert contents.written() == []


@pytest.mark.parametrize("offset", [0, 4088, 4090, 4095, 8191, (1 << 62) - 1])
def test_a_value_is_little_endian_wherever_it_stands(offset: int) -> None:
    contents = Contents()

    contents.write(offset, 8, 0x8877665544332211)

    assert contents.read(offset, 8) == 0x8877665544332211
    assert [contents.read(offset + byte, 1) for byte in range(8)] == [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]
    assert contents.read(offset + 8, 8) == 0


@pytest.mark.parametrize(("size", "value", "stored"), [(1, 0x1FF, 0xFF), (4, -1, 0xFFFFFFFF), (8, 1 << 64, 0)])
def test_a_store_keeps_the_low_bytes_of_the_value_as_a_cpu_does(size: int, value: int, stored: int) -> None:
    contents = Contents()

    contents.write(0, size, value)

    assert contents.read(0, 8) == stored


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("write", "zero")),
            st.integers(0, 3 * 4096),
            st.sampled_from((1, 2, 4, 8)),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=12,
    )
)
def test_it_is_an_array_of_bytes(steps: list[tuple[str, int, int, int]]) -> None:
    contents, naive = Contents(), bytearray(5 * 4096)
    for step, offset, size, value in steps:
        if step == "write":
            contents.write(offset, size, value)
            naive[offset : offset + size] = (value % (1 << 8 * size)).to_bytes(size, "little")
        else:
            first = offset // 4096 * 4096
            contents.zero(first, first + 4096 * size)
            naive[first : first + 4096 * size] = bytes(len(naive[first : first + 4096 * size]))

        for at in {max(0, offset - 8), offset, offset + size, 4092, 8188}:
            assert contents.read(at, 8) == int.from_bytes(naive[at : at + 8], "little")


def test_zeroing_a_huge_range_costs_what_was_written() -> None:
    contents = Contents()
    for offset in (0, 4096, 1 << 50):
        contents.write(offset, 1, 1)

    contents.zero(4096, 1 << 60)

    assert contents.written() == [0]
