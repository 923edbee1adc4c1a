"""Which page sizes an architecture's stage-2 tables map."""

from __future__ import annotations

import pytest

from guestmem.geometry import GEOMETRIES, X86_64, Geometry, geometry_named
from guestmem.units import GIB, KIB, MIB


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("x86-64", (4 * KIB, 2 * MIB, GIB)),
        ("x86-64-512G", (4 * KIB, 2 * MIB, GIB, 512 * GIB)),
        ("arm64-4K", (4 * KIB, 2 * MIB, GIB)),
        ("arm64-16K", (16 * KIB, 32 * MIB)),
        ("arm64-64K", (64 * KIB, 512 * MIB)),
        ("riscv64", (4 * KIB, 2 * MIB, GIB)),
    ],
)
def test_every_architecture_has_its_leaf_sizes(name: str, sizes: tuple[int, ...]) -> None:
    geometry = geometry_named(name)

    assert geometry.page_sizes == sizes
    assert [geometry.order_of(size) for size in sizes] == list(geometry.orders)
    assert [geometry.page_size(order) for order in geometry.orders] == list(sizes)
    assert geometry.page_size(geometry.largest_order) == sizes[-1]


def test_512g_pages_are_the_only_speculative_ones() -> None:
    assert {(name, order) for name, geometry in GEOMETRIES.items() for order in geometry.speculative} == {
        ("x86-64-512G", 27)
    }


@pytest.mark.parametrize("size", [0, 1, 4 * KIB - 1, 8 * KIB, 4 * MIB, 512 * GIB])
def test_a_size_without_a_level_is_a_value_error_that_lists_the_levels(size: int) -> None:
    with pytest.raises(ValueError, match=r"no leaf size of x86-64; there are 4K, 2M, 1G"):
        X86_64.order_of(size)


@pytest.mark.parametrize(
    ("size", "largest"),
    [
        (0, 4 * KIB),
        (4 * KIB, 4 * KIB),
        (2 * MIB - 4 * KIB, 4 * KIB),
        (2 * MIB, 2 * MIB),
        (GIB - 4 * KIB, 2 * MIB),
        (GIB, GIB),
        (1 << 60, GIB),
    ],
)
def test_the_largest_page_that_fits_a_size(size: int, largest: int) -> None:
    assert X86_64.largest_fitting(size) == largest


@pytest.mark.parametrize(("order", "name"), [(0, "4K"), (9, "2M"), (18, "1G"), (3, "32K")])
def test_orders_are_named_by_their_size(order: int, name: str) -> None:
    assert X86_64.name_of(order) == name


def test_an_unknown_geometry_is_a_value_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no geometry 'vax'; there are x86-64, "):
        geometry_named("vax")


@pytest.mark.parametrize(
    ("base_page_size", "orders"),
    [(4096, ()), (4096, (9,)), (4096, (0, 9, 9)), (4096, (0, 18, 9)), (4097, (0,)), (2048, (0,)), (0, (0,))],
)
def test_a_geometry_that_cannot_be_is_refused(base_page_size: int, orders: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"base page size|orders"):
        Geometry("broken", base_page_size, orders)


@pytest.mark.parametrize("speculative", [(27,), (0,), (9, 18)])
def test_only_a_huge_page_that_the_geometry_has_can_be_speculative(speculative: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="speculative orders"):
        Geometry("broken", 4096, (0, 9), speculative)


def test_a_geometry_of_a_few_pages_per_huge_page_is_as_good_as_any() -> None:
    tiny = Geometry("tiny", 4096, (0, 2, 4))

    assert tiny.page_sizes == (4 * KIB, 16 * KIB, 64 * KIB)
    assert [tiny.name_of(order) for order in tiny.orders] == ["4K", "16K", "64K"]
    assert tiny.largest_fitting(63 * KIB) == 16 * KIB
