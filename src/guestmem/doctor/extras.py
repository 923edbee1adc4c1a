"""Optional Python packages, and what works only with them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from guestmem.doctor.value import Finding, State

__all__ = ("EXTRAS", "examine_extras")

EXTRAS = {
    "fuzz": ("hypothesis", "shrinking what guestmem fuzz finds"),
    "proofs": ("z3", "guestmem prove"),
    "qemu": ("qemu.qmp", "the sources qmp:PATH and qemu:ARGUMENTS"),
    "traces": ("pyarrow", "fleets in Parquet"),
}


def installed(module: str) -> bool:
    """Whether it can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def examine_extras(is_installed: Callable[[str], bool] = installed) -> Finding:
    """Subject "extras"."""
    lacking = {name: purpose for name, (module, purpose) in EXTRAS.items() if not is_installed(module)}
    there = [name for name in EXTRAS if name not in lacking]
    found = f"installed: {', '.join(there) or 'none'}"
    if not lacking:
        return Finding("extras", State.OK, found, values={"installed": there})
    cause = "; ".join(f"{name} is not: {purpose}" for name, purpose in lacking.items())
    remedy = f"pip install 'guestmem[{','.join(lacking)}]'"
    return Finding("extras", State.LIMITED, found, cause, remedy, {"installed": there})
