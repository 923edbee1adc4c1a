"""Stage-2 tables: what becomes of a larger leaf when a smaller one is asked for inside it."""

from __future__ import annotations

import pytest

from guestmem.geometry import X86_64
from guestmem.model.hostmem import Anonymous
from guestmem.model.stage2 import Leaf, Stage2

SOURCE = Anonymous()


def leaf(order: int) -> Leaf:
    return Leaf(order, SOURCE, 0, private=False, writable=True)


@pytest.mark.parametrize("gfn", [0, 5, 511, 512, (1 << 18) - 1])
def test_a_small_leaf_inside_a_huge_one_splits_it_level_by_level_and_unmaps_nothing(gfn: int) -> None:
    tables = Stage2(X86_64)
    tables.map(0, leaf(18))
    tables.map(gfn, leaf(0))
    assert tables.count() == {0: 512, 9: 511}
    assert all(tables.get(other) is not None for other in (0, 1, 511, 512, (1 << 18) - 1))
    tables.check_invariants()


def test_leaves_from_one_huge_leaf_into_the_next_split_both() -> None:
    tables = Stage2(X86_64)
    tables.map(0, leaf(9), 3)
    tables.map(500, leaf(0), 600)
    assert tables.count() == {0: 3 * 512}
    tables.map(0, leaf(9), 3)
    tables.map(511, leaf(0), 2)
    assert tables.count() == {0: 2 * 512, 9: 1}
    tables.check_invariants()
