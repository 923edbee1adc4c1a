"""The text form of ``guestmem doctor``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from guestmem.doctor import Diagnosis

__all__ = ("doctor_lines",)


def doctor_lines(diagnoses: Iterable[Diagnosis]) -> Iterator[str]:
    """Each diagnosis with its condition, and its cause and remedy where it has them."""
    for each in diagnoses:
        yield f"{each.state:<9}{each.subject:<12} {each.found}"
        if each.cause:
            yield f"{'':<22}because: {each.cause}"
        if each.remedy:
            yield f"{'':<22}change:  {each.remedy}"
