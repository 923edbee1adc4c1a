"""Migration to a host with larger pages: which offsets stay valid, what must move where, and in which order.

A binding stays where the rule accepts it with the larger page and where no better offset was found. The others get new
offsets around those that stay; the data then moves within the file as ``moves`` orders it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from guestmem.layout.coverage import Coverage, HostLimits, cover
from guestmem.layout.planning.moves import Move, MoveOrder, MoveStep, in_order
from guestmem.layout.planning.offsets import best_offset, cost_at, laid_out
from guestmem.layout.planning.plan import FilePlan, Plan, as_planned, by_file, file_of
from guestmem.layout.value import Layout, Range, Slot, merged

__all__ = ("FileMigration", "Migration", "migrate", "start_of")


@dataclass(frozen=True, slots=True)
class FileMigration:
    """What happens to one file: its new size, the moves of its bindings, and their order."""

    file: FilePlan
    moves: tuple[Move, ...]
    order: MoveOrder


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

    @property
    def names(self) -> list[str]:
        """The slots in words."""
        return [f"{slot.region} at {slot.gpa:#x}" for slot in self.before.layout.slots]

    @property
    def steps(self) -> list[MoveStep]:
        """The steps of all files, one file after the other."""
        return [step for file in self.files for step in file.order.steps]

    @property
    def scratch(self) -> int:
        """The most bytes of scratch space that a file needs; files go one after the other."""
        return max((file.order.scratch for file in self.files), default=0)


def migrate(bound: Layout, host: HostLimits) -> Migration:
    """Plan the move of a bound layout to a host whose guest_memfds have host.files.page_size pages."""
    why = tuple(_why(slot, host) for slot in bound.slots)
    slots, files = list(bound.slots), []
    for name, members in by_file(bound.slots).items():
        moves = _moves(slots, members, why, host)
        for move in moves:
            slots[move.slot] = replace(slots[move.slot], offset=move.target)
        file = file_of(name or "", [slots[index] for index in members], host)
        files.append(FileMigration(file, moves, in_order(moves)))
    planned = as_planned(bound, slots, host, [file.file for file in files])
    return Migration(cover(_without_sizes(bound), host), cover(planned, host), why, tuple(files))


def start_of(layout: Layout, plan: Plan) -> Layout:
    """Where a migration starts: as the layout is bound if it says that, else as it was planned."""
    return plan.now.layout if any(slot.file for slot in layout.slots) else plan.planned.layout


def _why(slot: Slot, host: HostLimits) -> str | None:
    """Why the binding has to move, or would better; None where it stays (also if no offset is accepted)."""
    cost, best = cost_at(slot, slot.offset or 0, host), best_offset(slot, host)
    if best is None:
        return None
    if cost is None:
        return f"{host.files.rule.name} refuses its offset with the larger page"
    return f"{cost:,} leaves become {best[0]:,}" if best[0] < cost else None


def _moves(slots: list[Slot], members: list[int], why: tuple[str | None, ...], host: HostLimits) -> tuple[Move, ...]:
    """Places for the bindings of a file that move, around those that stay."""
    stay = [slots[index] for index in members if why[index] is None]
    runs = merged(Range(slot.offset or 0, (slot.offset or 0) + slot.size) for slot in stay)
    taken = [(run.start, run.end) for run in runs]
    movers = [index for index in members if why[index] is not None]
    targets = laid_out([slots[index] for index in movers], host, taken)
    return tuple(
        Move(index, slots[index].offset or 0, target, slots[index].size)
        for index, target in zip(movers, targets, strict=True)
        if target is not None
    )


def _without_sizes(layout: Layout) -> Layout:
    """Files as the new host would make them: of its page size, however long they were."""
    return replace(layout, files=tuple(replace(file, size=0, page_size=0) for file in layout.files))
