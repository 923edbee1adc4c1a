"""The pages of one file: where allocation puts them, what a hole does to a folio, and that none is lost."""

from __future__ import annotations

from functools import partial
from typing import get_args

import pytest
from helpers import errno_of
from hypothesis import given
from hypothesis import strategies as st

from guestmem.errors import KvmError
from guestmem.geometry import X86_64, Geometry
from guestmem.model.pagecache import Backing, PageCache
from guestmem.model.pools import HostPools

TINY = Geometry("tiny", 4096, (0, 2, 4))  # pages of 1, 4 and 16 base pages
BACKINGS: tuple[Backing, ...] = get_args(Backing)
HUGE, LARGE = 4, 2  # orders


def cache(
    npages: int = 64, order: int = HUGE, backing: Backing = "thp", capacity: dict[int, int] | None = None
) -> PageCache:
    return PageCache(npages, order, backing, TINY, HostPools(capacity))


def enomem(pages: PageCache, index: int) -> bool:
    return errno_of(lambda: pages.get_folio(index)) == "ENOMEM"


# -- allocation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", BACKINGS)
@pytest.mark.parametrize(
    ("index", "folio"), [(0, (0, 16)), (1, (0, 16)), (15, (0, 16)), (16, (16, 32)), (63, (48, 64))]
)
def test_the_folio_taken_is_the_one_that_contains_the_index_rounded_down(
    backing: Backing, index: int, folio: tuple[int, int]
) -> None:
    pages = cache(backing=backing)

    assert pages.get_folio(index) == HUGE
    assert list(pages.folios) == [(*folio, HUGE)]
    assert pages.get_folio(index) == HUGE, "it is there now"
    assert pages.allocations == {HUGE: 1}


def test_released_kernels_take_single_pages() -> None:
    pages = PageCache(1 << 20, 0, "thp", X86_64, HostPools())

    assert pages.get_folio(513) == 0
    assert list(pages.folios) == [(513, 514, 0)]


@pytest.mark.parametrize(
    ("backing", "expected"),
    [
        ("thp", [(0, 4, LARGE), (5, 6, 0)]),  # the largest leaf size whose block is empty
        ("shmem", [(0, 1, 0), (5, 6, 0)]),  # the huge page of the setting, or a single one
    ],
)
def test_a_block_that_is_not_empty_is_filled_with_smaller_folios(
    backing: Backing, expected: list[tuple[int, int, int]]
) -> None:
    pools = HostPools({HUGE: 1, LARGE: 1})
    elsewhere = PageCache(32, HUGE, "thp", TINY, pools)
    elsewhere.get_folio(0)
    large = PageCache(4, LARGE, "thp", TINY, pools)
    large.get_folio(0)
    pages = PageCache(64, HUGE, backing, TINY, pools)
    pages.get_folio(5)
    elsewhere.release()
    large.release()  # the huge pages are back, but index 5 is taken

    pages.get_folio(0)

    assert list(pages.folios) == expected


@pytest.mark.parametrize(
    ("capacity", "order"),
    [
        ({}, HUGE),
        ({HUGE: 1}, HUGE),
        ({HUGE: 0}, LARGE),
        ({HUGE: 0, LARGE: 0}, 0),
    ],
)
def test_thp_falls_back_to_what_the_host_has(capacity: dict[int, int], order: int) -> None:
    assert cache(capacity=capacity).get_folio(7) == order


def test_thp_fails_when_no_size_is_left() -> None:
    pages = cache(capacity={HUGE: 0, LARGE: 0, 0: 1})

    assert [enomem(pages, index) for index in (3, 3, 4)] == [False, False, True]


def test_hugetlb_never_falls_back() -> None:
    pages = cache(backing="hugetlb", capacity={HUGE: 1})

    assert [enomem(pages, index) for index in (0, 15, 16, 63)] == [False, False, True, True]
    assert list(pages.folios) == [(0, 16, HUGE)]


def test_shmem_falls_back_to_single_pages_only() -> None:
    assert cache(backing="shmem", capacity={HUGE: 0}).get_folio(7) == 0


@pytest.mark.parametrize("backing", ["thp", "shmem"])
def test_no_folio_reaches_past_the_end_of_the_file(backing: Backing) -> None:
    pages = cache(npages=18, backing=backing)
    for index in (17, 16):
        pages.get_folio(index)

    assert list(pages.folios) == [(16, 18, 0)]


def test_populating_fills_the_holes_and_rounds_outward_to_whole_folios() -> None:
    pages = cache()
    pages.get_folio(20)

    pages.populate(10, 40)

    assert list(pages.folios) == [(0, 48, HUGE)]
    assert pages.allocations == {HUGE: 3}


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (0, [(0, 4, 0), (4, 16, LARGE), (16, 64, HUGE)]),
        (5, [(0, 4, LARGE), (4, 8, 0), (8, 16, LARGE), (16, 64, HUGE)]),
        (63, [(0, 48, HUGE), (48, 60, LARGE), (60, 64, 0)]),
    ],
)
def test_populating_asks_again_for_the_largest_folio_at_every_block(
    there: int, expected: list[tuple[int, int, int]]
) -> None:
    pages = cache()
    pages.get_folio(there)
    pages.punch(0, there)
    pages.punch(there + 1, 64)
    assert list(pages.folios) == [(there, there + 1, 0)]

    pages.populate(0, 64)

    assert list(pages.folios) == expected


def test_populating_stops_at_enomem_and_keeps_what_it_got() -> None:
    pages = cache(backing="hugetlb", capacity={HUGE: 2})

    with pytest.raises(KvmError, match="ENOMEM") as refused:
        pages.populate(0, 64)

    assert refused.value.check == "host-has-page"
    assert list(pages.folios) == [(0, 32, HUGE)]


# -- shmem's setting ---------------------------------------------------------------------------------------------------


def test_shmems_setting_counts_from_now_on_and_moves_no_page_that_is_there() -> None:
    pages = cache(backing="shmem")
    pages.set_huge_order(0)
    pages.get_folio(0)
    assert pages.largest_order == 0

    pages.set_huge_order(HUGE)
    pages.get_folio(1)
    pages.get_folio(17)

    assert pages.largest_order == HUGE
    assert list(pages.folios) == [(0, 2, 0), (16, 32, HUGE)]


@pytest.mark.parametrize("backing", ["thp", "hugetlb"])
def test_other_backings_have_no_setting(backing: Backing) -> None:
    with pytest.raises(ValueError, match="fixed at creation"):
        cache(backing=backing).set_huge_order(0)


@pytest.mark.parametrize("order", [1, 3, 5, -1])
def test_the_setting_is_a_leaf_size(order: int) -> None:
    with pytest.raises(ValueError, match="not a leaf size of tiny"):
        cache(backing="shmem").set_huge_order(order)


# -- holes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", ["thp", "shmem"])
@pytest.mark.parametrize(
    ("hole", "left", "splits"),
    [
        ((0, 16), [(16, 64, HUGE)], 0),
        ((0, 64), [], 0),
        ((16, 48), [(0, 16, HUGE), (48, 64, HUGE)], 0),
        ((5, 6), [(0, 5, 0), (6, 16, 0), (16, 64, HUGE)], 1),
        ((0, 1), [(1, 16, 0), (16, 64, HUGE)], 1),
        ((15, 17), [(0, 15, 0), (17, 32, 0), (32, 64, HUGE)], 2),
        ((8, 56), [(0, 8, 0), (56, 64, 0)], 2),
        ((70, 90), [(0, 64, HUGE)], 0),  # past the end of the file
    ],
)
def test_a_hole_frees_whole_folios_and_splits_those_it_cuts(
    backing: Backing, hole: tuple[int, int], left: list[tuple[int, int, int]], splits: int
) -> None:
    pages = cache(backing=backing)
    pages.populate(0, 64)

    pages.punch(*hole)

    assert list(pages.folios) == left
    assert pages.splits == splits


@pytest.mark.parametrize(
    ("hole", "left"),
    [
        ((0, 16), [(16, 64, HUGE)]),
        ((5, 6), [(0, 64, HUGE)]),
        ((15, 33), [(0, 16, HUGE), (32, 64, HUGE)]),
        ((8, 56), [(0, 16, HUGE), (48, 64, HUGE)]),
    ],
)
def test_hugetlb_frees_whole_folios_and_zeroes_the_parts_it_cuts(
    hole: tuple[int, int], left: list[tuple[int, int, int]]
) -> None:
    pages = cache(backing="hugetlb")
    pages.populate(0, 64)
    for page in range(64):
        pages.contents.write(page * 4096, 1, 0xAA)

    pages.punch(*hole)

    assert list(pages.folios) == left
    assert pages.splits == 0
    zeroed = {page for page in range(64) if pages.contents.read(page * 4096, 1) == 0}
    assert zeroed == set(range(*hole))


def test_a_hole_takes_the_poison_with_it() -> None:
    pages = cache(order=0)
    pages.populate(0, 8)
    pages.poison(2)
    pages.poison(5)

    pages.punch(0, 4)

    assert [pages.poisoned.get(index) for index in (2, 5)] == [None, True]


def test_zeroing_part_of_a_hugetlb_folio_does_not_heal_the_broken_page_in_it() -> None:
    """Memory failure is a property of the page of the host; only a page that is freed is replaced."""
    pages = cache(backing="hugetlb")
    pages.populate(0, 16)
    pages.poison(2)

    pages.punch(0, 8)
    assert pages.poisoned.get(2)

    pages.punch(0, 16)
    assert not pages.poisoned.get(2)


def test_releasing_gives_everything_back() -> None:
    pools = HostPools({HUGE: 2})
    pages = PageCache(64, HUGE, "thp", TINY, pools)
    pages.populate(0, 64)
    assert pools.used() == {HUGE: 2, LARGE: 8}

    pages.release()

    assert pools.used() == {}


# -- properties --------------------------------------------------------------------------------------------------------

steps = st.lists(
    st.tuples(st.sampled_from(("get", "populate", "punch", "shrink", "grow")), st.integers(0, 69), st.integers(1, 40)),
    max_size=14,
)


@given(steps, st.sampled_from(BACKINGS), st.sampled_from((0, LARGE, HUGE)), st.integers(0, 4), st.integers(0, 70))
def test_pages_are_present_as_asked_inside_the_file_and_accounted_for(
    steps: list[tuple[str, int, int]], backing: Backing, order: int, huge_pages: int, base_pages: int
) -> None:
    npages = 64 if order else 61
    pools = HostPools({HUGE: huge_pages, 0: base_pages})
    pages = PageCache(npages, order, backing, TINY, pools)
    for step, first, count in steps:
        last = min(first + count, npages)
        if step == "shrink" and backing == "shmem":
            pages.set_huge_order(0)
        elif step == "grow" and backing == "shmem":
            pages.set_huge_order(HUGE)
        elif step == "punch":
            pages.punch(first, first + count)
            if backing != "hugetlb":
                assert not pages.folios.overlaps(first, first + count)
        elif step in ("get", "populate") and first < last:
            if step == "get":
                last, ends = first + 1, errno_of(partial(pages.get_folio, first))
            else:
                ends = errno_of(partial(pages.populate, first, last))
            assert ends in (None, "ENOMEM")
            assert ends or list(pages.folios.gaps(first, last)) == []

        pages.check_invariants()
        pools.check_invariants()
        held: dict[int, int] = {}
        for start, end, folio_order in pages.folios:
            assert end <= npages
            assert start % (1 << folio_order) == end % (1 << folio_order) == 0
            held[folio_order] = held.get(folio_order, 0) + ((end - start) >> folio_order)
        assert pools.used() == held
    pages.release()
    assert pools.used() == {}
