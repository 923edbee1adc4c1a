"""Sizes and 64-bit arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmem.units import (
    S64_MAX,
    U64_MAX,
    align_down,
    align_up,
    format_size,
    is_power_of_two,
    parse_size,
    to_s64,
)

powers = st.integers(0, 63).map(lambda order: 1 << order)
values = st.integers(0, U64_MAX)


@pytest.mark.parametrize(
    ("value", "size", "down", "up"),
    [
        (0, 4096, 0, 0),
        (1, 4096, 0, 4096),
        (4095, 4096, 0, 4096),
        (4096, 4096, 4096, 4096),
        (4097, 4096, 4096, 8192),
        (0x8000, 1 << 30, 0, 1 << 30),
        (7, 1, 7, 7),
        (U64_MAX, 4096, U64_MAX - 4095, 1 << 64),
    ],
)
def test_rounding_keeps_multiples_and_moves_the_rest_to_the_neighbouring_one(
    value: int, size: int, down: int, up: int
) -> None:
    assert (align_down(value, size), align_up(value, size)) == (down, up)


@given(values, powers)
def test_a_value_lies_between_what_it_rounds_to(value: int, size: int) -> None:
    down, up = align_down(value, size), align_up(value, size)

    assert down <= value <= up
    assert down % size == up % size == 0
    assert up - down == (0 if value % size == 0 else size)


@pytest.mark.parametrize("value", [1, 2, 4096, 1 << 63, 1 << 64])
def test_powers_of_two_are_recognised(value: int) -> None:
    assert is_power_of_two(value)


@pytest.mark.parametrize("value", [0, -1, -2, 3, 4095, 4097, (1 << 63) + 1])
def test_nothing_else_is_a_power_of_two(value: int) -> None:
    assert not is_power_of_two(value)


@pytest.mark.parametrize(
    ("unsigned", "signed"),
    [
        (0, 0),
        (1, 1),
        (S64_MAX, S64_MAX),
        (1 << 63, -(1 << 63)),
        (U64_MAX, -1),
        (U64_MAX - 4095, -4096),
        (1 << 64, 0),
        ((1 << 64) + 5, 5),
    ],
)
def test_u64_is_read_as_loff_t_and_wraps(unsigned: int, signed: int) -> None:
    assert to_s64(unsigned) == signed


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("0x1000", 4096),
        ("0X1000", 4096),
        ("4K", 4096),
        ("4k", 4096),
        ("4KiB", 4096),
        ("4KB", 4096),
        ("2M", 2 << 20),
        ("1G", 1 << 30),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("15E", 15 << 60),
        ("0x1E", 30),  # a hexadecimal digit, no suffix
        ("007", 7),
        (" 2M\n", 2 << 20),
        ("18446744073709551615", U64_MAX),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "K",
        "-1",
        "+1",
        "1.5G",
        "4 K",
        "4KK",
        "4Kb1",
        "0x",
        "1_000",
        "1e3",
        "4\u212a",  # KELVIN SIGN, which a case-insensitive K matches
        "\u0663K",  # ARABIC-INDIC DIGIT THREE
        "16E",
        "18446744073709551616",
        "9" * 21,
        "0x10000000000000000",
    ],
)
def test_what_is_no_size_is_a_value_error_that_quotes_it(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(not a size: |size )'"):
        parse_size(text)


def test_the_error_quotes_only_the_beginning_of_a_long_text() -> None:
    with pytest.raises(ValueError, match="not a size") as error:
        parse_size("x" * 100_000)

    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0"),
        (1, "1"),
        (1023, "1023"),
        (1024, "1K"),
        (4097, "4097"),
        (2 << 20, "2M"),
        ((1 << 30) + 4096, "1048580K"),
        (1 << 63, "8E"),
        (U64_MAX, str(U64_MAX)),
    ],
)
def test_sizes_are_written_with_the_largest_unit_that_divides_them(size_bytes: int, text: str) -> None:
    assert format_size(size_bytes) == text


@given(values)
def test_what_is_written_is_read_back(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes)) == size_bytes
