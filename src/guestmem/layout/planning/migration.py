"""Migration to a host with larger pages: which offsets stay valid, what must move where, and in which order.

A binding stays where the rule accepts it with the larger page and where no other offset maps it with fewer leaves. The
others get new offsets around those that stay; the data then moves within the file as ``moves`` orders it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from guestmem.layout.coverage import Coverage, HostLimits, cover
from guestmem.layout.planning.moves import Move, Schedule, schedule
from guestmem.layout.planning.offsets import Choice, best_choice, cost_at
from guestmem.layout.planning.packing import pack
from guestmem.layout.planning.plan import FilePlan, as_planned
from guestmem.layout.value import Layout, Slot
from guestmem.units import align_up

__all__ = ("FileMigration", "Migration", "migrate")


@dataclass(frozen=True, slots=True)
class FileMigration:
    """What happens to one file: its new size, the moves of its bindings, and their schedule."""

    file: FilePlan
    moves: tuple[Move, ...]
    schedule: Schedule


@dataclass(frozen=True, slots=True)
class Migration:
    """Layout before and after, judged on the new host; why[i] says why slot i moves (None: it stays)."""

    before: Coverage
    after: Coverage
    why: tuple[str | None, ...]
    files: tuple[FileMigration, ...]

    @property
    def moved(self) -> int:
        """Bytes of data that move to another offset."""
        return sum(move.size for file in self.files for move in file.moves)


def migrate(bound: Layout, host: HostLimits) -> Migration:
    """Plan the move of a bound layout to a host whose guest_memfds have host.files.page_size pages."""
    choices = [best_choice(slot, host) for slot in bound.slots]
    why = tuple(_why(slot, choice, host) for slot, choice in zip(bound.slots, choices, strict=True))
    slots = list(bound.slots)
    files = []
    for name in dict.fromkeys(slot.file for slot in bound.slots):
        members = [index for index, slot in enumerate(bound.slots) if slot.file == name]
        files.append(_migrate_file(name or "", members, slots, choices, why, host))
    planned = as_planned(bound, slots, host, [file.file for file in files])
    return Migration(cover(_without_sizes(bound), host), cover(planned, host), why, tuple(files))


def _why(slot: Slot, choice: Choice | None, host: HostLimits) -> str | None:
    """Why the binding has to move, or would better; None where it stays (also if no offset is accepted)."""
    cost = cost_at(slot, slot.offset or 0, host)
    if choice is None:
        return None
    if cost is None:
        return f"{host.files.rule.name} refuses its offset with the larger page"
    return f"{cost:,} leaves become {choice.cost:,}" if choice.cost < cost else None


def _migrate_file(
    name: str,
    members: list[int],
    slots: list[Slot],
    choices: list[Choice | None],
    why: tuple[str | None, ...],
    host: HostLimits,
) -> FileMigration:
    """Place the bindings that move around those that stay, and change them in slots."""
    stay = [index for index in members if why[index] is None]
    taken = sorted((slots[index].offset or 0, (slots[index].offset or 0) + slots[index].size) for index in stay)
    movers = [(index, choice) for index in members if why[index] is not None and (choice := choices[index]) is not None]
    packed = pack([choice for _, choice in movers], taken)
    moves = []
    for (index, _), offset in zip(movers, packed.offsets, strict=True):
        moves.append(Move(index, slots[index].offset or 0, offset, slots[index].size))
        slots[index] = replace(slots[index], offset=offset)
    bound = sum(slots[index].size for index in members)
    size = max(align_up(packed.end, host.files.page_size), host.files.page_size)
    file = FilePlan(name, size, bound, packed.end - bound, packed.optimal)
    return FileMigration(file, tuple(moves), schedule(moves))


def _without_sizes(layout: Layout) -> Layout:
    """Files as the new host would make them: of its page size, however long they were."""
    return replace(layout, files=tuple(replace(file, size=0, page_size=0) for file in layout.files))
