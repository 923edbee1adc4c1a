"""Which bytes of a layout can be mapped at which level, in closed form, each lost byte with its reason.

For a level with page size P a naturally aligned frame of guest-physical space can be mapped when it lies wholly in one
slot, all its pages have the same attribute, GPA and HVA are congruent modulo P (kvm_alloc_memslot_metadata), and what
backs it allows: for shared pages no dirty logging and a host mapping of at least P; for private pages what the
guest_memfd hands out. Costs one step per run of attributes and never one per page, so an exabyte costs what a megabyte
does.

The model decides levels too, ``vector`` does so in arrays, and ``races.memory`` for its small worlds: tests compare
them (test_coverage_on_model, test_vector, test_races_levels). Sizes are bytes, a level is named by its page size.
``mapped[i]`` counts bytes that can be mapped with sizes[i] *or larger*, so at every level mapped plus lost is the size
of the slot.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from guestmem.errors import KvmError
from guestmem.geometry import X86_64, Geometry
from guestmem.layout.binding import RELEASED, BindingLimit, FileLimits
from guestmem.layout.reasons import RANK, Reason
from guestmem.layout.refusal import is_by_rule, refusals
from guestmem.layout.segments import (
    Neighbours,
    Part,
    Segment,
    Verdict,
    all_of,
    or_larger,
    segments_of,
    uniform_segments,
)
from guestmem.layout.value import Backing, Layout, Slot
from guestmem.model.profiles import Profile
from guestmem.units import align_down, align_up

__all__ = ("Coverage", "HostLimits", "Lost", "Segment", "SlotCoverage", "best_possible", "cover")

_NO_SLOT_ABOVE = 1 << 65


@dataclass(frozen=True, slots=True)
class HostLimits:
    """What kernel and host can do: the leaf sizes of stage 2, and how memory is backed.

    sizes: in bytes, ascending; sizes[0] is the base page. thp: anonymous and shmem memory counts as possible up to
    sizes[1]; nobody can promise it. files: how a guest_memfd is taken; the default is released kernels, where it hands
    out base pages only. profile: the kernel whose errnos refusals have; None is the newest that takes files so.
    """

    geometry: Geometry = X86_64
    thp: bool = True
    files: FileLimits = RELEASED
    profile: Profile | None = None
    sizes: tuple[int, ...] = field(init=False, repr=False, compare=False)  # of the geometry: asked for per slot

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", self.geometry.page_sizes)

    def largest(self, backing: Backing) -> int:
        """The largest leaf a host mapping of this backing can have, bytes."""
        if self.thp and backing.transparent:
            return max(backing.page_size, self.sizes[min(1, len(self.sizes) - 1)])
        return backing.page_size


@dataclass(frozen=True, slots=True)
class Lost:
    """``size`` bytes that cannot be mapped with pages of ``page_size`` bytes, for one reason."""

    page_size: int
    reason: Reason
    size: int


@dataclass(frozen=True, slots=True)
class SlotCoverage:
    """The verdict on one slot; segments[i] covers the slot for sizes[i] without gap or overlap."""

    slot: Slot
    sizes: tuple[int, ...]
    segments: tuple[tuple[Segment, ...], ...]
    mapped: tuple[int, ...]
    lost: tuple[Lost, ...]

    @property
    def leaves(self) -> tuple[int, ...]:
        """Page-table leaves of each size when every byte is mapped as large as it can be."""
        return _leaves(self.sizes, self.mapped)


@dataclass(frozen=True, slots=True)
class Coverage:
    """The verdict on a layout: one SlotCoverage per slot, in the layout's order."""

    layout: Layout
    host: HostLimits
    slots: tuple[SlotCoverage, ...]
    refused: Mapping[int, KvmError] = field(
        default_factory=dict, compare=False
    )  # index of a slot -> why KVM refuses it

    @property
    def size(self) -> int:
        """Bytes in all slots."""
        return sum(item.slot.size for item in self.slots)

    @property
    def mapped(self) -> tuple[int, ...]:
        """Bytes that can be mapped with each size or larger."""
        return tuple(sum(item.mapped[i] for item in self.slots) for i in range(len(self.host.sizes)))

    @property
    def leaves(self) -> tuple[int, ...]:
        """Page-table leaves of each size."""
        return _leaves(self.host.sizes, self.mapped)

    @property
    def lost(self) -> tuple[Lost, ...]:
        """Lost bytes of all slots by level and reason, ascending by level, in the order of the reasons."""
        sums: dict[tuple[int, Reason], int] = {}
        for item in self.slots:
            for lost in item.lost:
                sums[lost.page_size, lost.reason] = sums.get((lost.page_size, lost.reason), 0) + lost.size
        return tuple(
            Lost(page_size, reason, sums[page_size, reason])
            for page_size in self.host.sizes
            for reason in Reason
            if (page_size, reason) in sums
        )


def cover(layout: Layout, host: HostLimits | None = None) -> Coverage:
    """Decide every byte of the layout at every level of the host."""
    host = host or HostLimits()
    limits = [_limit(layout, slot, host) for slot in layout.slots]
    refused = refusals(layout, host)
    absent = {index: Reason.RULE if is_by_rule(why) else Reason.REFUSED for index, why in refused.items()}
    around = _neighbours(layout.slots, absent)
    covered = []
    for index, (slot, limit, near) in enumerate(zip(layout.slots, limits, around, strict=True)):
        segments: list[tuple[Segment, ...]]
        if index in absent:
            segments = [(Segment(slot.gpa, slot.end, absent[index]),)] * len(host.sizes)
        else:
            segments = _levels(layout, slot, host, limit, near)
        covered.append(_summed(slot, host.sizes, segments))
    return Coverage(layout, host, tuple(covered), refused)


def best_possible(coverage: Coverage) -> tuple[int, ...]:
    """Bytes mappable at each level if only the guest-physical layout counted: no attribute, address or backing.

    What a layout that moves no GPA can reach at most, whatever HVA, offset, page size and kernel.
    """
    geometry = {Reason.REFUSED, Reason.SHARED_FRAME, Reason.HEAD, Reason.TAIL}
    size = coverage.size
    lost = dict.fromkeys(coverage.host.sizes, 0)
    for item in coverage.lost:
        if item.reason in geometry:
            lost[item.page_size] += item.size
    return tuple(size - lost[page_size] for page_size in coverage.host.sizes)


def _leaves(sizes: Sequence[int], mapped: Sequence[int]) -> tuple[int, ...]:
    larger = [*mapped[1:], 0]
    return tuple((at - above) // size for size, at, above in zip(sizes, mapped, larger, strict=True))


def _limit(layout: Layout, slot: Slot, host: HostLimits) -> BindingLimit | None:
    file = layout.file_of(slot)
    return host.files.limit(slot, file, host.geometry) if file is not None and slot.guest_memfd else None


def _neighbours(slots: Sequence[Slot], absent: Container[int]) -> Iterator[Neighbours]:
    standing = [slot for index, slot in enumerate(slots) if index not in absent]
    starts = [(slot.address_space, slot.gpa) for slot in standing]
    for slot in slots:
        place = bisect_right(starts, (slot.address_space, slot.gpa))
        below = standing[place - 2] if place >= 2 and standing[place - 1] is slot else None
        above = standing[place] if place < len(standing) else None
        yield Neighbours(
            below.end if below and below.address_space == slot.address_space else 0,
            above.gpa if above and above.address_space == slot.address_space else _NO_SLOT_ABOVE,
        )


def _levels(
    layout: Layout, slot: Slot, host: HostLimits, limit: BindingLimit | None, near: Neighbours
) -> list[tuple[Segment, ...]]:
    """The segments for every size of the host, the smallest first."""
    private = layout.private_in(slot.gpa, slot.end)
    if limit is None and not private:
        return [_plain(slot, page_size, host, near) for page_size in host.sizes]
    file = layout.file_of(slot)
    by_file = limit is not None and file is not None and file.mmap and host.files.serve_shared
    found: list[tuple[Segment, ...]] = []
    for page_size in host.sizes:
        from_file = all_of(Reason.NO_FILE) if limit is None else partial(limit.parts, page_size=page_size)
        shared = from_file if by_file else _shared(slot, page_size, host)
        found.append(segments_of(slot, page_size, near, private, shared, from_file))
    if limit is not None and limit.page_size:  # a rule may allow a folio whole that it refuses in part
        for index in reversed(range(len(found) - 1)):
            found[index] = or_larger(found[index], found[index + 1])
    return found


def _plain(slot: Slot, page_size: int, host: HostLimits, near: Neighbours) -> tuple[Segment, ...]:
    """The segments of a slot that knows neither files nor attributes: most slots of most VMs."""
    if page_size == host.sizes[0]:
        return (Segment(slot.gpa, slot.end, None),)
    if slot.backing.huge:
        shared = _shared(slot, page_size, host)
        return segments_of(slot, page_size, near, (), shared, shared)
    return uniform_segments(slot, page_size, near, _from_hva(slot, page_size, host))


def _shared(slot: Slot, page_size: int, host: HostLimits) -> Verdict:
    """The verdict on frames whose pages come from the HVA: what the host maps huge now can be, whatever may come."""
    reason = _from_hva(slot, page_size, host)
    if reason is not Reason.BACKING or not slot.backing.huge or page_size > host.sizes[1] or slot.hva is None:
        return all_of(reason)
    shift, now = slot.gpa - slot.hva, Reason.DIRTY_LOG if slot.dirty_log else None
    pieces = [
        (align_up(low + shift, page_size), align_down(high + shift, page_size)) for low, high in slot.backing.huge
    ]

    def parts(start: int, end: int) -> Iterator[Part]:
        at = start
        for low, high in pieces:
            first, last = max(low, at), min(high, end)
            if first < last:
                yield at, first, Reason.BACKING
                yield first, last, now
                at = last
        yield at, end, Reason.BACKING

    return parts


def _from_hva(slot: Slot, page_size: int, host: HostLimits) -> Reason | None:
    """The verdict on whole frames of shared pages behind the HVA."""
    if page_size == host.sizes[0]:
        return None
    if not slot.is_placed_for(page_size):
        return Reason.HVA
    if host.largest(slot.backing) < page_size:
        return Reason.BACKING
    return Reason.DIRTY_LOG if slot.dirty_log else None


def _summed(slot: Slot, sizes: tuple[int, ...], levels: Sequence[tuple[Segment, ...]]) -> SlotCoverage:
    mapped: list[int] = []
    lost: list[Lost] = []
    for page_size, segments in zip(sizes, levels, strict=True):
        by_reason: dict[Reason, int] = {}
        for segment in segments:
            if segment.reason is not None:
                by_reason[segment.reason] = by_reason.get(segment.reason, 0) + segment.end - segment.start
        mapped.append(slot.size - sum(by_reason.values()))
        if by_reason:
            lost += [Lost(page_size, reason, by_reason[reason]) for reason in sorted(by_reason, key=RANK.__getitem__)]
    return SlotCoverage(slot, sizes, tuple(levels), tuple(mapped), tuple(lost))
