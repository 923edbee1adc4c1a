"""Coverage: which bytes can be mapped at which level, held to a naive oracle and to what real kernels did."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from layouts import PAGE, SMALL, hosts, small_layouts
from naive_coverage import naive_reason, naive_refusal

from guestmem.layout import Backing, HostLimits, Layout, Range, Reason, Slot, best_possible, cover
from guestmem.layout.binding import FileLimits
from guestmem.rules import RULES, Rule, SlotMetadata
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY
from guestmem.units import GIB, MIB

HUGE_2M = Backing("hugetlb", 2 * MIB)
HUGE_1G = Backing("hugetlb", GIB)


def one(slot: Slot, private: tuple[Range, ...] = (), host: HostLimits | None = None) -> tuple[int, ...]:
    """Leaves of each size for a layout of one slot."""
    return cover(Layout("t", "t", (slot,), private=private), host).leaves


@given(small_layouts(), hosts())
@settings(max_examples=300, deadline=None)
def test_every_page_gets_the_verdict_that_the_naive_oracle_gives(layout: Layout, host: HostLimits) -> None:
    coverage = cover(layout, host)
    for item in coverage.slots:
        if naive_refusal(layout, item.slot, host):
            assert {lost.reason for lost in item.lost} == {Reason.RULE}
            assert item.mapped == (0, 0, 0)
            continue
        for size, segments in zip(host.sizes, item.segments, strict=True):
            for segment in segments:
                for page in range(segment.start, segment.end, PAGE):
                    assert segment.reason == naive_reason(layout, item.slot, host, page, size), (hex(page), size)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize(("offset", "pages"), [(0, 16 * 9), (0, 16 * 9 + 8), (8, 16 * 9), (16, 16 * 9 + 12)])
def test_a_long_binding_is_judged_at_both_ends_and_in_the_middle(rule: Rule, offset: int, pages: int) -> None:
    slot = Slot(offset * PAGE, pages * PAGE, flags=KVM_MEM_GUEST_MEMFD, file="f", offset=offset * PAGE)
    layout = Layout("t", "t", (slot,), private=(Range(0, 300 * PAGE),))
    host = HostLimits(SMALL, files=FileLimits(16 * PAGE, rule))
    (item,) = cover(layout, host).slots
    for size, segments in zip(host.sizes, item.segments, strict=True):
        for segment in segments:
            for page in range(segment.start, segment.end, PAGE):
                refused = naive_refusal(layout, slot, host)
                wanted = Reason.RULE if refused else naive_reason(layout, slot, host, page, size)
                assert segment.reason == wanted, (hex(page), size)


@given(small_layouts(), hosts())
@settings(max_examples=300, deadline=None)
def test_at_every_level_mapped_and_lost_bytes_add_up_to_the_slot_exactly(layout: Layout, host: HostLimits) -> None:
    coverage = cover(layout, host)
    for item in coverage.slots:
        for size, mapped, segments in zip(host.sizes, item.mapped, item.segments, strict=True):
            assert mapped + sum(lost.size for lost in item.lost if lost.page_size == size) == item.slot.size
            assert [segment.start for segment in segments] == [item.slot.gpa, *(s.end for s in segments[:-1])]
            assert segments[-1].end == item.slot.end
        assert max(Counter((lost.page_size, lost.reason) for lost in item.lost).values(), default=1) == 1
    for size, mapped in zip(host.sizes, coverage.mapped, strict=True):
        assert mapped + sum(lost.size for lost in coverage.lost if lost.page_size == size) == coverage.size


@given(small_layouts(), hosts())
@settings(max_examples=200, deadline=None)
def test_what_can_be_mapped_large_can_be_mapped_smaller_and_nothing_beats_the_best_possible(
    layout: Layout, host: HostLimits
) -> None:
    coverage = cover(layout, host)
    for item in coverage.slots:
        assert list(item.mapped) == sorted(item.mapped, reverse=True)
        assert sum(n * size for n, size in zip(item.leaves, item.sizes, strict=True)) == item.mapped[0]
    assert all(now <= best for now, best in zip(coverage.mapped, best_possible(coverage), strict=True))


# docs/kernel-behaviour.md#examples-of-levels: leaves counted on real 6.12 and 7.2 kernels after touching all of a slot.
BASE = 0x7F00_4000_0000
TABLE = [
    pytest.param(Slot(0, 8 * MIB, BASE, backing=HUGE_2M), (), (0, 4, 0), id="all aligned, 8M"),
    pytest.param(Slot(0, 6 * MIB, BASE + 4096, backing=HUGE_2M), (), (1536, 0, 0), id="hva one page off"),
    pytest.param(Slot(4096, 4 * MIB, BASE + 4096, backing=HUGE_2M), (), (512, 1, 0), id="gpa and hva one page off"),
    pytest.param(Slot(4096, 2 * MIB - 4096, BASE + 4096, backing=HUGE_2M), (), (511, 0, 0), id="inside one frame"),
    pytest.param(Slot(4096, 4 * MIB - 4096, BASE + 4096, backing=HUGE_2M), (), (511, 1, 0), id="ends aligned"),
    pytest.param(Slot(0, 2 * MIB - 4096, BASE, backing=HUGE_2M), (), (511, 0, 0), id="2M less a page"),
    pytest.param(Slot(0, 2 * MIB + 4096, BASE, backing=HUGE_2M), (), (1, 1, 0), id="2M and a page"),
    pytest.param(Slot(MIB, 4 * MIB, BASE + MIB, backing=HUGE_2M), (), (512, 1, 0), id="both 1M off"),
    pytest.param(Slot(0, 2 * MIB, BASE, KVM_MEM_READONLY, backing=HUGE_2M), (), (0, 1, 0), id="read-only"),
    pytest.param(Slot(0, 2 * MIB, BASE, KVM_MEM_LOG_DIRTY_PAGES, backing=HUGE_2M), (), (512, 0, 0), id="dirty log"),
    pytest.param(Slot(0, 2 * MIB, BASE, backing=Backing("file")), (), (512, 0, 0), id="backed by 4K pages"),
    pytest.param(
        Slot(0, 4 * MIB, BASE, KVM_MEM_GUEST_MEMFD, file="g", offset=0, backing=HUGE_2M), (), (0, 2, 0), id="all shared"
    ),
    pytest.param(
        Slot(0, 4 * MIB, BASE, KVM_MEM_GUEST_MEMFD, file="g", offset=4096, backing=HUGE_2M),
        (),
        (0, 2, 0),
        id="file offset misaligned, all shared",
    ),
    pytest.param(
        Slot(0, 4 * MIB, BASE, KVM_MEM_GUEST_MEMFD, file="g", offset=0, backing=HUGE_2M),
        (Range(0, 4096),),
        (512, 1, 0),
        id="one private page in the first range",
    ),
    pytest.param(
        Slot(0, 4 * MIB, BASE, KVM_MEM_GUEST_MEMFD, file="g", offset=0, backing=HUGE_2M),
        (Range(0, 2 * MIB),),
        (512, 1, 0),
        id="first range wholly private",
    ),
    pytest.param(
        Slot(0, 4 * MIB, BASE, KVM_MEM_GUEST_MEMFD, file="g", offset=0, backing=HUGE_2M),
        (Range(MIB, 3 * MIB),),
        (1024, 0, 0),
        id="private across both ranges",
    ),
    pytest.param(
        Slot(0, 4 * MIB, BASE, backing=HUGE_2M), (Range(0, 4096),), (511, 1, 0), id="plain slot, one private page"
    ),
    pytest.param(
        Slot(MIB, 3 * MIB, BASE + MIB, backing=HUGE_2M), (Range(0, 4096),), (256, 1, 0), id="private outside the slot"
    ),
    pytest.param(Slot(0, GIB, BASE, backing=HUGE_1G), (), (0, 0, 1), id="1G page, aligned"),
    pytest.param(Slot(2 * MIB, GIB, BASE, backing=HUGE_1G), (), (0, 512, 0), id="1G page, gpa shifted by 2M"),
    pytest.param(Slot(0, GIB - 4096, BASE, backing=HUGE_1G), (), (511, 511, 0), id="1G less a page"),
    pytest.param(
        Slot(0, GIB, BASE, KVM_MEM_GUEST_MEMFD, file="g", offset=0, backing=HUGE_1G),
        (Range(2 * MIB, 2 * MIB + 4096),),
        (512, 511, 0),
        id="1G page, one page of the second 2M private",
    ),
]


@pytest.mark.parametrize(("slot", "private", "leaves"), TABLE)
def test_leaves_are_those_counted_on_real_kernels(
    slot: Slot, private: tuple[Range, ...], leaves: tuple[int, ...]
) -> None:
    assert one(slot, private) == leaves


def test_a_1g_hugetlb_mapping_half_touched_by_dirty_logging_is_all_base_pages() -> None:
    assert one(Slot(0, GIB, BASE, KVM_MEM_LOG_DIRTY_PAGES, backing=HUGE_1G)) == (GIB // 4096, 0, 0)


def test_thp_is_counted_as_possible_up_to_2m_and_only_when_asked() -> None:
    slot = Slot(0, GIB, BASE, backing=Backing("anonymous"))
    assert one(slot) == (0, 512, 0)
    assert one(slot, host=HostLimits(thp=False)) == (GIB // 4096, 0, 0)


def test_two_slots_of_one_congruent_allocation_that_split_a_frame_lose_it_in_both() -> None:
    low = Slot(0, 3 * MIB, BASE, backing=HUGE_2M)
    high = Slot(3 * MIB, 3 * MIB, BASE + 3 * MIB, backing=HUGE_2M)
    coverage = cover(Layout("t", "t", (low, high)))
    assert coverage.leaves == (512, 2, 0)
    lost = {(item.page_size, item.reason): item.size for item in coverage.lost}
    assert lost[2 * MIB, Reason.SHARED_FRAME] == 2 * MIB


def test_the_discussion_example_loses_everything_because_the_page_begins_before_the_binding() -> None:
    slot = Slot(0, GIB, None, KVM_MEM_GUEST_MEMFD, file="g", offset=0x4000)
    host = HostLimits(files=FileLimits(page_size=GIB, rule=SlotMetadata()))
    coverage = cover(Layout("t", "t", (slot,), private=(Range(0, GIB),)), host)
    lost = {(item.page_size, item.reason): item.size for item in coverage.lost}
    assert lost[GIB, Reason.BINDING] == GIB
    # For 2M pages only the two pages that cross an end of the binding stick out; the rest are merely not congruent.
    assert lost[2 * MIB, Reason.OFFSET] + lost[2 * MIB, Reason.BINDING] == GIB
    assert coverage.leaves == (GIB // 4096, 0, 0)


def test_moving_the_offset_to_a_congruent_one_brings_the_whole_page_back() -> None:
    slot = Slot(0, GIB, None, KVM_MEM_GUEST_MEMFD, file="g", offset=GIB)
    host = HostLimits(files=FileLimits(page_size=GIB))
    assert cover(Layout("t", "t", (slot,), private=(Range(0, GIB),)), host).leaves == (0, 0, 1)


def test_an_exabyte_costs_what_a_megabyte_does() -> None:
    size = 1 << 60
    slots = tuple(Slot(n * size, size, None, backing=HUGE_1G) for n in range(4))
    coverage = cover(Layout("t", "t", slots))
    # One slot holds at most 2**31 - 1 pages: KVM refuses these, and the answer is as exact as for a small one.
    assert coverage.mapped == (0, 0, 0)
    huge = tuple(Slot(n * 4 * (1 << 40), 4 * (1 << 40), None, backing=HUGE_1G) for n in range(1000))
    assert cover(Layout("t", "t", huge)).leaves == (0, 0, 1000 * 4096)
