"""The Markdown form of ``guestmem rules``: a page for documentation, every rule on all layouts together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from guestmem.layout.bound import PACKINGS, Verdicts
from guestmem.report.rules_text import PACKING_WORDS, sizes
from guestmem.rules import RULES
from guestmem.text import percent
from guestmem.units import format_size, size_text

__all__ = ("to_markdown",)


def to_markdown(verdicts: list[Verdicts], command: str) -> str:
    """A page made by the command: what the rules are, and for every packing what each makes of all layouts.

    All verdicts are of one geometry and page size.
    """
    return "\n".join([*_head(verdicts, command), *_totals(verdicts)]) + "\n"


def _head(verdicts: list[Verdicts], command: str) -> Iterator[str]:
    size = format_size(verdicts[0].page_size) if verdicts else "1G"
    yield f"""# Every alignment rule on real layouts

Made by `{command}`; do not edit. Each RAM slot is taken as bound to a guest_memfd with {size} pages, all
private, as the profile `next` would map it. The numbers are the bytes that can be mapped with
pages of a size or larger, of what the guest-physical layout allows at best, whatever the offsets. A refused slot maps
nothing. `guestmem rules FILE` has the table of one layout, with `--slots` also which slots a rule refuses, and why.
"""
    yield from _table(["rule", "who", "when", "statement"], ([r.name, r.author, r.date, r.statement] for r in RULES))


def _totals(verdicts: list[Verdicts]) -> Iterator[str]:
    for packing in PACKINGS:
        chosen = [one for one in verdicts if one.packing == packing]
        if not chosen:
            continue
        names = [f"with {format_size(size)}, of the best" for size in sizes(chosen[0])]
        yield f"\n## {len(chosen)} layouts: {PACKING_WORDS[packing]}\n"
        yield from _table(["rule", "slots refused", "layouts refused", *names], _total_rows(chosen), right=True)


def _total_rows(chosen: list[Verdicts]) -> Iterator[list[str]]:
    slots = sum(len(one.layout.slots) for one in chosen)
    levels = range(1, len(sizes(chosen[0])) + 1)
    for rule, column in zip(RULES, zip(*(one.rules for one in chosen), strict=True), strict=True):
        refused = sum(verdict.refused for verdict in column)
        hit = sum(verdict.refused > 0 for verdict in column)
        shares = []
        for level in levels:
            mapped = sum(verdict.coverage.mapped[level] for verdict in column)
            best = sum(one.best[level] for one in chosen)
            shares.append(f"{size_text(mapped)} of {size_text(best)}, {percent(mapped, best)}")
        yield [rule.name, f"{refused} of {slots}", f"{hit} of {len(chosen)}", *shares]


def _table(columns: list[str], rows: Iterable[list[str]], *, right: bool = False) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"| --- |{(' ---: |' if right else ' --- |') * (len(columns) - 1)}"
    for cells in rows:
        yield f"| {' | '.join(cells)} |"
