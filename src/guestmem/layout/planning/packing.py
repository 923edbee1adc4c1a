"""Laying bindings end to end in a file, each at an offset of its best classes, in as little space as possible.

Given an order, placing each binding at its first best offset after the one before wastes least, since a later start can
only make what follows later. So the smallest end is that of the best order: found exactly over subsets of up to
EXACT_LIMIT bindings, by trying some good orders beyond that. Ranges that must stay free of others are walked around.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from guestmem.layout.planning.offsets import Choice, is_modular

__all__ = ("EXACT_LIMIT", "Packed", "pack")

EXACT_LIMIT = 11  # 2**11 subsets, each tried with eleven bindings: a fraction of a second
Taken = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Packed:
    """Offsets in the order of the choices; end is one past the last byte; optimal says that no order ends earlier."""

    offsets: tuple[int, ...]
    end: int
    optimal: bool


def pack(choices: Sequence[Choice], taken: Taken = ()) -> Packed:
    """Place every binding; ``taken`` are file ranges [start, end) that are in use, ascending."""
    bottom = max((end for _, end in taken), default=0)
    if len(choices) <= EXACT_LIMIT:
        offsets, end = _exact(choices, taken)
        optimal = all(is_modular(choice.host.files.rule) for choice in choices)
    else:
        tried = (_in_order(choices, order, taken) for order in _good_orders(choices))
        offsets, end = min(tried, key=lambda one: one[1])
        optimal = end <= max(bottom, _least_end(choices, taken))
    return Packed(tuple(offsets), max(end, bottom), optimal)


def _place(choice: Choice, start: int, taken: Taken) -> int:
    """The first best offset from start on that touches nothing taken."""
    offset = choice.next_offset(start)
    for low, high in taken:
        if offset < high and low < offset + choice.slot.size:
            offset = choice.next_offset(high)
    return offset


def _exact(choices: Sequence[Choice], taken: Taken) -> tuple[list[int], int]:
    """The smallest end over all orders, by dynamic programming over the set of bindings placed."""
    count = len(choices)
    ends = [0] + [-1] * ((1 << count) - 1)
    last = [(-1, -1)] * (1 << count)  # the binding placed last and its offset
    for placed in range(1 << count):
        for index in range(count):
            after = placed | 1 << index
            if after == placed:
                continue
            offset = _place(choices[index], ends[placed], taken)
            end = offset + choices[index].slot.size
            if ends[after] < 0 or end < ends[after]:
                ends[after], last[after] = end, (index, offset)
    offsets, placed = [0] * count, (1 << count) - 1
    while placed:
        index, offset = last[placed]
        offsets[index] = offset
        placed ^= 1 << index
    return offsets, ends[-1]


def _in_order(choices: Sequence[Choice], order: Sequence[int], taken: Taken) -> tuple[list[int], int]:
    offsets, end = [0] * len(choices), 0
    for index in order:
        offsets[index] = _place(choices[index], end, taken)
        end = offsets[index] + choices[index].slot.size
    return offsets, end


def _good_orders(choices: Sequence[Choice]) -> list[list[int]]:
    """By GPA, by size, and always the binding that wastes least next."""
    by_gpa = sorted(range(len(choices)), key=lambda index: choices[index].slot.gpa)
    by_size = sorted(by_gpa, key=lambda index: -choices[index].slot.size)
    return [by_gpa, by_size, by_size[::-1], _least_waste_first(choices)]


def _least_waste_first(choices: Sequence[Choice]) -> list[int]:
    left, order, end = set(range(len(choices))), [], 0
    while left:
        index = min(left, key=lambda one: (choices[one].next_offset(end) - end, -choices[one].slot.size))
        order.append(index)
        left.remove(index)
        end = choices[index].next_offset(end) + choices[index].slot.size
    return order


def _least_end(choices: Sequence[Choice], taken: Taken) -> int:
    """No placing ends before the bytes fill the file without a hole, or before any binding by itself can end."""
    alone = (_place(choice, 0, taken) + choice.slot.size for choice in choices)
    return max(sum(choice.slot.size for choice in choices), max(alone, default=0))
