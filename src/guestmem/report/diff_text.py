"""``guestmem diff`` and ``guestmem fuzz`` for people."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from guestmem.recordings.diff import Collected, Group, grouped
from guestmem.report.values import causes_text
from guestmem.text import counted, safe

if TYPE_CHECKING:
    from guestmem.fuzz.campaign import Campaign, Figures

__all__ = ("diff_text", "differing_text", "fuzz_text")


def diff_text(collected: Collected, a: str, b: str, show: int) -> str:
    """What differs, at most ``show`` causes in full, then what is known, then the sum."""
    return "\n".join(_diff(collected, a, b, show))


def _diff(collected: Collected, a: str, b: str, show: int) -> Iterator[str]:
    new = grouped(collected.new)
    yield from causes_text(new[:show], a, b)
    if len(new) > show:
        yield f"and {counted(len(new) - show, 'more cause')}; --show {len(new)} shows them all"
    for group in grouped(collected.known):
        cause = group.cause
        yield f"known: {cause.divergence}: {cause.op}: {a} {cause.a}, {b} {cause.b}; {group.count}"
    if collected.skipped:
        yield f"not run: {counted(collected.skipped, 'operation')}"
    compared = f"{counted(collected.operations, 'operation')} of {counted(collected.sequences, 'sequence')} compared"
    known = counted(len(collected.known), "known divergence")
    yield f"{compared}, {known}, {_differ(len(collected.new))}, {counted(len(new), 'cause')}"


def fuzz_text(campaign: Campaign, figures: Figures, groups: list[Group], written: list[Path]) -> str:
    """What differs, where it was written, what is known, then the sum."""
    return "\n".join(_fuzz(campaign, figures, groups, written))


def _fuzz(campaign: Campaign, figures: Figures, groups: list[Group], written: list[Path]) -> Iterator[str]:
    a, b = campaign.a.name, campaign.b.name
    yield from causes_text(groups, a, b)
    for path in written:
        yield f"written: {safe(str(path))}"
    if figures.differ and not groups:
        yield differing_text(figures)
    for seed, how in figures.ended.items():
        yield f"seed {seed}: the process: {how}"
    for name, count in sorted(figures.known.items()):
        yield f"known: {name}: {count}"
    run = f"{counted(figures.operations, 'operation')} of {counted(figures.sequences, 'sequence')} on {a} and {b}"
    known = counted(figures.known.total(), "known divergence")
    yield f"{run}, {figures.skipped} not run, {known}, {_differ(len(figures.differ))}"


def differing_text(figures: Figures) -> str:
    """The first seeds that differ, so that one can look at them while the others run."""
    seeds, more = figures.differ[:5], len(figures.differ) > 5
    word = "differs" if len(figures.differ) == 1 else "differ"
    return f"{len(figures.differ)} {word}: seed {', '.join(map(str, seeds))}{' and more' if more else ''}"


def _differ(sequences: int) -> str:
    return f"{counted(sequences, 'sequence')} {'differs' if sequences == 1 else 'differ'}"
