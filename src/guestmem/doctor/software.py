"""What else is installed: the lab and what it lacks, and the optional Python packages."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from guestmem.doctor.value import Condition, Diagnosis, Values
from guestmem.lab.inventory import Status

__all__ = ("EXTRAS", "examine_extras", "examine_lab")

EXTRAS = {
    "cluster": ("distributed", "guestmem fuzz --dask"),
    "exec": ("unicorn", "guestmem exec"),
    "fuzz": ("hypothesis", "shrinking what guestmem fuzz finds"),
    "proofs": ("z3", "guestmem prove"),
    "qemu": ("qemu.qmp", "the sources qmp:PATH and qemu:ARGUMENTS"),
    "traces": ("pyarrow", "fleets in Parquet"),
}


def examine_lab(status: Status) -> Diagnosis:
    """Subject "lab"."""
    kernels = [kernel.release for kernel in status.kernels if kernel.key in status.usable]
    values: Values = {"qemu": status.qemu, "kernels": kernels, "missing_tools": list(status.missing_tools)}
    if status.is_ready:
        return Diagnosis("lab", Condition.OK, f"ready: {', '.join(kernels)}", values=values)
    causes, remedies = [], []
    if not status.qemu:
        causes.append("no QEMU")
        remedies.append("apt install qemu-system-x86")
    if not kernels:
        damaged = [f"the kernel is damaged: {each}" for each in status.damaged.values()]
        causes.append("; ".join(damaged) or "no kernel is built")
        if status.missing_tools:
            remedies.append(f"apt install {' '.join(status.missing_tools)}")
        remedies.append("guestmem lab build")
    return Diagnosis("lab", Condition.LIMITED, "cannot be booted yet", ", ".join(causes), "; ".join(remedies), values)


def installed(module: str) -> bool:
    """Whether it can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is in
        return False


def examine_extras(is_installed: Callable[[str], bool] = installed) -> Diagnosis:
    """Subject "extras"."""
    lacking = {name: purpose for name, (module, purpose) in EXTRAS.items() if not is_installed(module)}
    there = [name for name in EXTRAS if name not in lacking]
    found = f"installed: {', '.join(there) or 'none'}"
    if not lacking:
        return Diagnosis("extras", Condition.OK, found, values={"installed": there})
    cause = "; ".join(f"{name} is not: {purpose}" for name, purpose in lacking.items())
    remedy = f"pip install 'guestmem[{','.join(lacking)}]'"
    return Diagnosis("extras", Condition.LIMITED, found, cause, remedy, {"installed": there})
