"""Coverage of millions of slots at once: the closed form of ``coverage``, column by column with numpy.

For slots that are wholly shared, or wholly private under a kernel that hands out base pages, of VMs of which KVM would
refuse nothing; whatever is not so simple is marked by ``simple`` and left to the scalar path. A test holds both to the
same answer. Columns are sorted by VM, address space and GPA; sizes and addresses are bytes, unsigned 64 bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from guestmem.layout.coverage import HostLimits
from guestmem.layout.reasons import Reason
from guestmem.layout.value import Backing

__all__ = ("Columns", "Sums", "cover_columns", "simple_vms")

U64s: TypeAlias = npt.NDArray[np.uint64]
Flags: TypeAlias = npt.NDArray[np.bool_]

_FAR = np.uint64(2**64 - 1)
_BLOCK = 1 << 16  # rows
_MAX_END = np.uint64(1 << 62)  # beyond, sums could wrap
_MAX_HVA = np.uint64((1 << 56) - 4096)


@dataclass(frozen=True, slots=True)
class Columns:
    """One row per slot. page_size and transparent are those of its Backing; has_hva: hva is known and counts."""

    vm: npt.NDArray[np.int64]
    space: npt.NDArray[np.int64]
    gpa: U64s
    size: U64s
    hva: U64s
    has_hva: Flags
    page_size: U64s
    transparent: Flags
    dirty_log: Flags
    from_file: Flags  # all pages come from a guest_memfd that hands out base pages

    def __len__(self) -> int:
        return len(self.gpa)

    def sorted(self) -> Columns:
        """The rows in the order that the computation needs."""
        return self.rows(np.lexsort((self.gpa, self.space, self.vm)))

    def rows(self, which: npt.NDArray[Any] | slice) -> Columns:
        """Some of the rows: by a mask, by their places in order, or from one to another."""
        return Columns(*(getattr(self, name)[which] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Sums:
    """Bytes by VM: size, mapped[level], and lost[level][reason] as one row per VM."""

    size: U64s
    mapped: tuple[U64s, ...]
    lost: tuple[dict[Reason, U64s], ...]


def simple_vms(columns: Columns, vms: int, base: int) -> Flags:
    """Which VMs hold nothing that KVM would refuse and nothing near the end of 64 bits. Columns must be sorted."""
    page = np.uint64(base - 1)
    bad = (columns.size == 0) | ((columns.size | columns.gpa) & page != 0) | (columns.size >= np.uint64(1 << 43))
    bad |= (columns.gpa >= _MAX_END) | (columns.size >= _MAX_END)
    bad |= columns.has_hva & ((columns.hva & page != 0) | (columns.hva >= _MAX_HVA - columns.size))
    bad |= columns.space > 1  # KVM_MAX_NR_ADDRESS_SPACES
    end = columns.gpa + columns.size
    same = _same_space(columns)
    bad[1:] |= same & (columns.gpa[1:] < end[:-1])
    return np.asarray(np.bincount(columns.vm, weights=bad, minlength=vms) == 0)


def cover_columns(columns: Columns, vms: int, host: HostLimits) -> Sums:
    """Sum up every VM. Columns must be sorted, and the VMs simple."""
    starts = np.searchsorted(columns.vm, np.arange(vms + 1))
    sums = Sums(
        np.zeros(vms, np.uint64), tuple(np.zeros(vms, np.uint64) for _ in host.sizes), tuple({} for _ in host.sizes)
    )
    first = 0
    while first < vms:  # some VMs at a time: a column of their bytes for each reason takes more than all rows do
        last = max(int(np.searchsorted(starts, starts[first] + _BLOCK, side="right")) - 1, first + 1)
        rows = columns.rows(slice(int(starts[first]), int(starts[last])))
        _add(sums, slice(first, last), _cover_block(rows, first, last - first, host))
        first = last
    return sums


def _add(sums: Sums, place: slice, block: Sums) -> None:
    sums.size[place] = block.size
    for mapped, values in zip(sums.mapped, block.mapped, strict=True):
        mapped[place] = values
    for by_reason, found in zip(sums.lost, block.lost, strict=True):
        for reason, values in found.items():
            by_reason.setdefault(reason, np.zeros(len(sums.size), np.uint64))[place] = values


def _cover_block(columns: Columns, first: int, vms: int, host: HostLimits) -> Sums:
    """The sums of VMs number ``first`` and on, whose rows these are."""
    starts = np.searchsorted(columns.vm, np.arange(first, first + vms))
    counts = np.diff(np.append(starts, len(columns)))
    end = columns.gpa + columns.size
    same = _same_space(columns)
    below = np.zeros(len(columns), np.uint64)
    below[1:] = np.where(same, end[:-1], np.uint64(0))
    above = np.full(len(columns), _FAR)
    above[:-1] = np.where(same, columns.gpa[1:], _FAR)

    def total(values: U64s) -> U64s:
        sums = np.zeros(vms, np.uint64)
        some = counts > 0
        if some.any():
            sums[some] = np.add.reduceat(values, starts[some])
        return sums

    thp = np.uint64(host.largest(Backing("anonymous")))
    largest = np.where(columns.transparent, np.maximum(columns.page_size, thp), columns.page_size)
    size = total(columns.size)
    mapped, lost = [size.copy()], [dict[Reason, U64s]()]
    for page_size in host.sizes[1:]:
        parts = _lost(columns, end, below, above, largest, page_size)
        by_reason = {reason: total(values) for reason, values in parts.items()}
        gone = np.sum(list(by_reason.values()), axis=0, dtype=np.uint64)
        mapped.append(size - gone)
        lost.append({reason: values for reason, values in by_reason.items() if values.any()})
    return Sums(size, tuple(mapped), tuple(lost))


def _same_space(columns: Columns) -> Flags:
    """Whether each row but the first is in the VM and address space of the row before."""
    return np.asarray((columns.vm[1:] == columns.vm[:-1]) & (columns.space[1:] == columns.space[:-1]))


def _lost(columns: Columns, end: U64s, below: U64s, above: U64s, largest: U64s, page_size: int) -> dict[Reason, U64s]:
    """Bytes of each slot lost for pages of one size, by reason."""
    page, mask = np.uint64(page_size), np.uint64(2**64 - page_size)
    first, last = (columns.gpa + page - np.uint64(1)) & mask, end & mask
    inside = first > last  # the slot lies inside one frame
    first, last = np.where(inside, end, first), np.where(inside, end, last)
    head, middle, tail = first - columns.gpa, last - first, end - last
    head_shared = _shared(columns.gpa & mask, below, above, page)
    tail_shared = _shared(last & mask, below, above, page)
    zero = np.uint64(0)
    misaligned = columns.has_hva & ((columns.gpa - columns.hva) % page != 0)
    small = largest < page
    order_0 = columns.from_file
    hva = ~order_0 & misaligned
    backing = ~order_0 & ~misaligned & small
    dirty = ~order_0 & ~misaligned & ~small & columns.dirty_log
    return {
        Reason.SHARED_FRAME: np.where(head_shared, head, zero) + np.where(tail_shared, tail, zero),
        Reason.HEAD: np.where(head_shared, zero, head),
        Reason.TAIL: np.where(tail_shared, zero, tail),
        Reason.ORDER_0: np.where(order_0, middle, zero),
        Reason.HVA: np.where(hva, middle, zero),
        Reason.BACKING: np.where(backing, middle, zero),
        Reason.DIRTY_LOG: np.where(dirty, middle, zero),
    }


def _shared(frame: U64s, below: U64s, above: U64s, page: np.uint64) -> Flags:
    """Whether another slot has bytes in the frame."""
    return (below > frame) | (above < frame + page)
