"""What a shell offers for the values of options: names that exist, looked up when somebody presses the key."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ("backends", "fail_on", "formats", "geometries", "kernels", "mutations", "profiles", "rules", "starting")


def profiles(incomplete: str) -> list[str]:
    """Every profile."""
    from guestmem.model.profiles import HISTORY, PROFILES

    return starting(incomplete, [*PROFILES, *HISTORY])


def kernels(incomplete: str) -> list[str]:
    """The profiles with guest_memfd."""
    from guestmem.model.profiles import PROFILES

    return starting(incomplete, PROFILES)


def backends(incomplete: str) -> list[str]:
    """What --on takes, but for kernels of the lab."""
    from guestmem.model.profiles import HISTORY, PROFILES

    return starting(incomplete, ["model", "kvm", "lab", *(f"model:{name}" for name in (*PROFILES, *HISTORY))])


def rules(incomplete: str) -> list[str]:
    """Every alignment rule of the catalogue."""
    from guestmem.rules import RULES

    return starting(incomplete, [*(rule.name for rule in RULES), "none"])


def geometries(incomplete: str) -> list[str]:
    """Every architecture's page sizes."""
    from guestmem.geometry import GEOMETRIES

    return starting(incomplete, GEOMETRIES)


def formats(incomplete: str) -> list[str]:
    """The formats of layouts."""
    from guestmem.layout.formats import FORMATS

    return starting(incomplete, FORMATS)


def fail_on(incomplete: str) -> list[str]:
    """Severities."""
    from guestmem.layout.findings import SEVERITIES

    return starting(incomplete, [*SEVERITIES, "never"])


def mutations(incomplete: str) -> list[str]:
    """The rules of the protocol that can be taken away."""
    from guestmem.races.protocol import MUTATIONS

    return starting(incomplete, MUTATIONS)


def starting(incomplete: str, names: Iterable[str]) -> list[str]:
    """The names that begin as typed."""
    return [name for name in names if name.startswith(incomplete)]
