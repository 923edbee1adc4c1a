"""``guestmem run`` for people: how operations ended, what differs, and the sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from guestmem.recordings.run import Disagreement, FileReport
from guestmem.report.values import words
from guestmem.text import counted, safe

__all__ = ("run_text",)


def run_text(reports: list[FileReport], show: int, on: str) -> str:
    """All recordings that were run on a target; at most ``show`` differences in full."""
    return "\n".join(_lines(reports, show, on))


def _lines(reports: list[FileReport], show: int, on: str) -> Iterator[str]:
    outcomes: Counter[tuple[str, str]] = Counter()
    for report in reports:
        outcomes.update(report.outcomes)
        run = f"{counted(report.sequences, 'sequence')}, {counted(report.operations, 'operation')}"
        yield f"{safe(report.file)}: profile {', '.join(report.profiles)}, {run}"
    yield ""
    yield from _outcomes(outcomes)
    differences = [difference for report in reports for difference in report.differences]
    for number, difference in enumerate(differences[:show], 1):
        yield ""
        yield from _difference(number, difference, on)
    yield ""
    yield from _totals(reports, len(differences))


def _outcomes(outcomes: Counter[tuple[str, str]]) -> Iterator[str]:
    """One line per operation: how often it ended how."""
    by_operation: dict[str, Counter[str]] = {}
    for (op, ended), count in outcomes.items():
        by_operation.setdefault(op, Counter())[ended] += count
    width = max(map(len, by_operation), default=0)
    for op, endings in sorted(by_operation.items()):
        parts = (f"{ended} {count}" for ended, count in sorted(endings.items(), key=lambda item: (-item[1], item[0])))
        yield f"  {op:<{width}}  {sum(endings.values()):>6}  {', '.join(parts)}"


def _difference(number: int, difference: Disagreement, on: str) -> Iterator[str]:
    where = f"{safe(difference.file)}:{difference.line}"
    touch = "" if difference.touch is None else f", touch {difference.touch}"
    yield f"difference {number}: {where}: {safe(difference.sequence)}, operation {difference.index}{touch}"
    yield f"  {difference.op} {words(difference.arguments)}"
    yield f"    recorded  {words(difference.recorded)}"
    yield f"    {on:<8}  {words(difference.got)}"
    if difference.check:
        yield f"    decided   [{difference.check}] {difference.reason}"
    elif difference.reason:
        yield f"    decided   {difference.reason}"
    elif on == "model":
        yield "    decided   no check refused"


def _totals(reports: list[FileReport], differences: int) -> Iterator[str]:
    operations = sum(report.operations for report in reports)
    known: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    for report in reports:
        known.update(report.divergences)
        skipped.update(report.skipped)
    for why, count in sorted(skipped.items()):
        yield f"not run: {count}: {safe(why)}"
    if not any(report.compared for report in reports):
        run = "1 operation was" if operations == 1 else f"{operations} operations were"
        yield f"{run} run; none had a recorded outcome to compare with"
        return
    agreed = sum(report.agreed for report in reports)
    listed = ", ".join(f"{name} {count}" for name, count in sorted(known.items()))
    divergences = counted(known.total(), "known divergence") + (f" ({listed})" if listed else "")
    yield f"{agreed:,} of {operations:,} operations agree, {divergences}, {counted(differences, 'difference')}"
