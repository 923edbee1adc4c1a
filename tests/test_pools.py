"""The host's pages: finite where said so, and never lost or made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestmem.model.pools import HostPools


@pytest.mark.parametrize(
    ("capacity", "asked", "given"),
    [({0: 4}, 3, 3), ({0: 4}, 4, 4), ({0: 4}, 5, 4), ({0: 0}, 1, 0), ({}, 1 << 40, 1 << 40), ({9: 1}, 7, 7)],
)
def test_a_pool_gives_what_it_has_and_no_more(capacity: dict[int, int], asked: int, given: int) -> None:
    pools = HostPools(capacity)

    assert pools.take(0, asked) == given
    assert pools.used() == ({0: given} if given else {})
    assert pools.free(0) == (capacity[0] - given if 0 in capacity else None)


def test_what_is_given_back_can_be_taken_again() -> None:
    pools = HostPools({9: 2})
    pools.take(9, 2)
    assert pools.take(9, 1) == 0

    pools.give(9, 1)

    assert pools.take(9, 1) == 1


def test_a_split_page_becomes_base_pages_for_good() -> None:
    pools = HostPools({0: 0, 9: 2})
    pools.take(9, 2)

    pools.split(9)

    assert pools.used() == {0: 512, 9: 1}
    assert (pools.free(0), pools.free(9)) == (0, 0)
    pools.give(0, 512)
    assert (pools.free(0), pools.free(9)) == (512, 0)


def test_a_split_also_counts_where_there_is_no_limit() -> None:
    pools = HostPools()
    pools.take(9, 1)

    pools.split(9)

    assert pools.used() == {0: 512}


@given(st.lists(st.tuples(st.sampled_from(("take", "give", "split")), st.integers(0, 6)), max_size=30))
def test_bytes_in_use_and_bytes_of_the_host_never_change_by_splitting(steps: list[tuple[str, int]]) -> None:
    orders = {0: 12, 2: 5}
    pools = HostPools(orders)
    host = sum(count << order for order, count in orders.items())
    used = {0: 0, 2: 0}
    for step, count in steps:
        order = 2 if count % 2 else 0
        if step == "take":
            used[order] += pools.take(order, count)
        elif step == "give":
            count = min(count, used[order])
            if count:
                pools.give(order, count)
            used[order] -= count
        elif used[2]:
            pools.split(2)
            used = {0: used[0] + 4, 2: used[2] - 1}

        pools.check_invariants()
        assert pools.used() == {order: count for order, count in used.items() if count}
        free = sum((pools.free(order) or 0) << order for order in orders)
        assert free + sum(count << order for order, count in used.items()) == host
