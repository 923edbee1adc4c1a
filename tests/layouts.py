"""Random small layouts for property tests: pages of 4K, 16K and 64K, so that rare shapes are common."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from guestmem.geometry import Geometry
from guestmem.layout import Backing, File, HostLimits, Layout, Range, Slot
from guestmem.layout.binding import FileLimits
from guestmem.layout.value import BackingKind
from guestmem.rules import RULES
from guestmem.uapi import KVM_MEM_GUEST_MEMFD, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY

PAGE = 0x1000
SIZES = (PAGE, 4 * PAGE, 16 * PAGE)
SMALL = Geometry("small", PAGE, (0, 2, 4))
KINDS: tuple[BackingKind, ...] = ("anonymous", "shmem", "file", "hugetlb", "unknown")


@st.composite
def small_layouts(draw: st.DrawFn) -> Layout:
    """Up to four slots in a few hundred pages of GPA space, some bound to guest_memfds, with random private ranges."""
    slots, at = [], draw(st.integers(0, 20))
    ends = [0, 0]
    for _ in range(draw(st.integers(1, 4))):
        at += draw(st.sampled_from([0, 0, 1, 3, 8]))
        pages = draw(st.one_of(st.integers(1, 40), st.integers(60, 90)))
        slots.append(draw(_slot(at, pages, ends)))
        at += pages
    all_private = draw(st.booleans())
    marks = [0, 500] if all_private else draw(st.lists(st.integers(0, 110), max_size=6, unique=True).map(sorted))
    private = tuple(Range(a * PAGE, b * PAGE) for a, b in zip(marks[::2], marks[1::2], strict=False))
    files = tuple(
        File(name, flags=draw(st.sampled_from([0, 1, 3])), page_size=draw(st.sampled_from([0, *SIZES])))
        for name in ("f0", "f1")
    )
    return Layout("random", "test", tuple(slots), files=files, private=private)


@st.composite
def _slot(draw: st.DrawFn, at: int, pages: int, ends: list[int]) -> Slot:
    hva = draw(st.one_of(st.none(), st.integers(0, 31), st.just(at), st.just(at + 16)))
    backing = Backing(draw(st.sampled_from(KINDS)), draw(st.sampled_from(SIZES)))
    plain = Slot(at * PAGE, pages * PAGE, None if hva is None else hva * PAGE, backing=backing)
    file = draw(st.sampled_from([None, 0, 1]))
    if file is None:
        flags = draw(st.sampled_from([0, 0, KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY]))
        return replace(plain, flags=flags)
    gap = draw(st.one_of(st.integers(0, 20), st.sampled_from([(at - ends[file]) % 16, -ends[file] % 4])))
    offset = ends[file] + gap
    ends[file] = offset + pages
    return replace(plain, flags=KVM_MEM_GUEST_MEMFD, file=f"f{file}", offset=offset * PAGE)


def hosts() -> st.SearchStrategy[HostLimits]:
    """Hosts of the small geometry: released kernels and ones whose guest_memfds have huge pages."""
    files = st.builds(
        FileLimits, page_size=st.sampled_from([0, *SIZES]), rule=st.sampled_from(RULES), serve_shared=st.booleans()
    )
    return st.builds(HostLimits, geometry=st.just(SMALL), thp=st.booleans(), files=files)
