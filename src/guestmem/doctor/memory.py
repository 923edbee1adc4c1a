"""Huge pages that host memory can have: the hugetlb pools and transparent huge pages."""

from __future__ import annotations

import re

from guestmem.doctor.value import Condition, Diagnosis, HostFiles, Values
from guestmem.units import KIB, format_size

__all__ = ("examine_hugetlb", "examine_thp")

_POOLS = "/sys/kernel/mm/hugepages"
_THP = "/sys/kernel/mm/transparent_hugepage"
_ON_REQUEST = {"enabled": "madvise", "shmem_enabled": "advise"}  # the setting that leaves it to the process


def examine_hugetlb(host: HostFiles) -> Diagnosis:
    """Subject "hugetlb": pages of each pool, all and free."""
    values: Values = {}
    pools = []
    for name in host.names(_POOLS):
        size = re.fullmatch(r"hugepages-(\d+)kB", name)
        total, free = (host.read(f"{_POOLS}/{name}/{file}") for file in ("nr_hugepages", "free_hugepages"))
        if size is None or total is None or free is None or not (total.isdecimal() and free.isdecimal()):
            continue
        pages = format_size(int(size[1]) * KIB)
        values[pages], values[f"{pages} free"] = int(total), int(free)
        pools.append((int(size[1]), f"{pages}: {total}, {free} free", int(total)))
    if not pools:
        return Diagnosis("hugetlb", Condition.UNKNOWN, "unknown", f"{_POOLS} cannot be read or has no pools")
    found = "; ".join(text for _, text, _ in sorted(pools))
    if any(total for _, _, total in pools):
        return Diagnosis("hugetlb", Condition.OK, found, values=values)
    remedy = "vm.nr_hugepages for 2M pages; hugepagesz=1G hugepages=N on the kernel's command line for 1G"
    return Diagnosis("hugetlb", Condition.LIMITED, found, "no pool has pages", remedy, values)


def examine_thp(host: HostFiles) -> Diagnosis:
    """Subject "thp": for anonymous memory (enabled) and for shared memory, memfds among it (shmem_enabled)."""
    chosen = {name: _chosen(host.read(f"{_THP}/{name}")) for name in ("enabled", "shmem_enabled")}
    if chosen["enabled"] is None:
        return Diagnosis("thp", Condition.UNKNOWN, "unknown", f"{_THP}/enabled cannot be read")
    values: Values = {name: value or "unknown" for name, value in chosen.items()}
    found = f"anonymous memory: {values['enabled']}; shared memory: {values['shmem_enabled']}"
    never = [name for name, value in chosen.items() if value == "never"]
    if never:
        remedy = " and ".join(f"echo {_ON_REQUEST[name]} > {_THP}/{name}" for name in never)
        return Diagnosis("thp", Condition.LIMITED, found, f"{' and '.join(never)}: never", f"as root: {remedy}", values)
    return Diagnosis("thp", Condition.OK, found, values=values)


def _chosen(text: str | None) -> str | None:
    """The word in brackets: "always [madvise] never"."""
    found = re.search(r"\[(\w+)\]", text or "")
    return found[1] if found else None
