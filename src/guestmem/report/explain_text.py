"""``guestmem explain`` for people: checks as a table of profiles, accesses step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from guestmem.errors import errno_name
from guestmem.explain import Explanation
from guestmem.report.values import words
from guestmem.text import safe

if TYPE_CHECKING:
    from guestmem.model.checks import Observation

__all__ = ("explain_text",)


def explain_text(where: str, sequence: str, operation: int, explanations: list[Explanation]) -> str:
    """One operation; where is its file and line."""
    lines = [f"{safe(where)}: {safe(sequence)}, operation {operation}"]
    for touch in dict.fromkeys(explanation.touch for explanation in explanations):
        lines += _operation([explanation for explanation in explanations if explanation.touch == touch])
    return "\n".join(lines)


def _operation(group: list[Explanation]) -> Iterator[str]:
    yield ""
    yield f"{group[0].op} {words(group[0].arguments)}"
    longest = max(6, *(len(explanation.profile) for explanation in group))
    for explanation in group:
        refused = f"  [{explanation.check}] {explanation.reason}" if explanation.check else ""
        yield f"  {explanation.profile:<{longest}} {words(explanation.outcome)}{refused}"
    yield from _checks(group)
    yield from _steps(group)


def _checks(group: list[Explanation]) -> Iterator[str]:
    """One row per check, one column per profile; the values where they were looked at."""
    walked = {each.profile: {seen.name: seen for seen in each.walked if seen.passed is not None} for each in group}
    names = list(dict.fromkeys(name for checks in walked.values() for name in checks))
    if not names:
        return
    width, column = max(map(len, names)), max(12, *(len(profile) + 2 for profile in walked))
    yield ""
    yield f"  {'check':<{width}}  {''.join(f'{profile:<{column}}' for profile in walked)}values"
    for name in names:
        cells = [_cell(checks.get(name)) for checks in walked.values()]
        values = dict.fromkeys(checks[name].text for checks in walked.values() if name in checks)
        yield f"  {name:<{width}}  {''.join(f'{cell:<{column}}' for cell in cells)}{' | '.join(values)}"


def _cell(observation: Observation | None) -> str:
    if observation is None:
        return "-"
    return "passed" if observation.passed else errno_name(observation.errno)


def _steps(group: list[Explanation]) -> Iterator[str]:
    """The steps of a fault; profiles that took the same ones are printed once."""
    by_steps: dict[tuple[Observation, ...], list[str]] = {}
    for explanation in group:
        steps = tuple(observation for observation in explanation.walked if observation.passed is None)
        by_steps.setdefault(steps, []).append(explanation.profile)
    for steps, profiles in by_steps.items():
        if steps:
            yield ""
            yield f"  {', '.join(profiles)}:"
        for step in steps:
            yield f"    {step.name:<21} {step.text}"
