"""A process's mappings as smaps shows them: what backs them, in which pages, and whether these may become huge.

Whether the kernel grants transparent huge pages is decided for each mapping, by its flags and by the machine's
settings (thp_vma_allowable_orders): "always", or "madvise" together with MADV_HUGEPAGE, and never with MADV_NOHUGEPAGE.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from guestmem.units import KIB, MIB

__all__ = ("Kind", "HostMapping", "ThpSettings", "parse_smaps", "read_thp_settings")

Kind = Literal["anonymous", "shmem", "file", "hugetlb", "device", "guest_memfd", "unknown"]
_THP = Path("/sys/kernel/mm/transparent_hugepage")
_RANGE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (....) ([0-9a-f]+) \S+ (\d+)[ \t]*(.*)")
_DEVICES = ("/dev/", "anon_inode:")
_SHM = ("/dev/shm/", "/run/shm/", "/memfd:", "/SYSV", "/dev/zero (deleted)")


@dataclass(frozen=True, slots=True)
class HostMapping:
    """One mapping: addresses [start, end) in bytes. path is "" for anonymous memory, offset counts bytes in the file.

    page_size: of its pages for certain, bytes. thp: whether the kernel may give it transparent huge pages of 2M; None
    where that is not known. huge: bytes that are mapped by such pages now.
    """

    start: int
    end: int
    kind: Kind = "unknown"
    page_size: int = 4 * KIB
    thp: bool | None = None
    huge: int = 0
    path: str = ""
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ThpSettings:
    """What is granted for anonymous memory and for shmem: True always, None with MADV_HUGEPAGE, False never."""

    anonymous: bool | None
    shmem: bool | None


def read_thp_settings(directory: Path = _THP) -> ThpSettings:
    """The machine's settings for 2M pages; those of this size come before those of all sizes (Linux 6.8 on)."""
    answers = {"always": True, "within_size": True, "force": True, "madvise": None, "advise": None}
    found = []
    for name in ("enabled", "shmem_enabled"):
        own = _chosen(directory / "hugepages-2048kB" / name)
        choice = _chosen(directory / name) if own in ("", "inherit") else own
        found.append(answers.get(choice, False))
    return ThpSettings(*found)


def parse_smaps(text: str, thp: ThpSettings) -> Iterator[HostMapping]:
    """Every mapping of a /proc/PID/smaps."""
    head: re.Match[str] | None = None
    fields: dict[str, str] = {}
    for line in text.splitlines():
        match = _RANGE.match(line)
        if match is None:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
            continue
        if head is not None:
            yield _mapping(head, fields, thp)
        head, fields = match, {}
    if head is not None:
        yield _mapping(head, fields, thp)


def _mapping(head: re.Match[str], fields: dict[str, str], thp: ThpSettings) -> HostMapping:
    start, end = int(head[1], 16), int(head[2], 16)
    flags = fields.get("VmFlags", "").split()
    path = head[6].strip()
    page_size = _bytes(fields, "KernelPageSize") or 4 * KIB
    kind = _kind(path, flags, page_size)
    huge = sum(_bytes(fields, name) for name in ("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"))
    granted = _granted(kind, flags, thp)
    if fields.get("THPeligible") == "0" and granted is not None:
        granted = False
    return HostMapping(start, end, kind, page_size, granted, huge, path, int(head[4], 16))


def _kind(path: str, flags: list[str], page_size: int) -> Kind:
    if "ht" in flags or page_size >= 2 * MIB:
        return "hugetlb"
    if "[kvm-gmem]" in path or "[guest_memfd]" in path:
        return "guest_memfd"
    if not path or path.startswith("["):
        return "shmem" if path.startswith("[anon_shmem") else "anonymous"
    if path.startswith(_SHM):
        return "shmem"
    return "device" if "pf" in flags or path.startswith(_DEVICES) else "file"


def _granted(kind: Kind, flags: list[str], thp: ThpSettings) -> bool | None:
    if kind not in ("anonymous", "shmem"):
        return None if kind == "file" else False
    if "nh" in flags:
        return False
    setting = thp.anonymous if kind == "anonymous" else thp.shmem
    return "hg" in flags if setting is None else setting


def _bytes(fields: dict[str, str], name: str) -> int:
    number = fields.get(name, "0").split()[0:1]
    return int(number[0]) * KIB if number and number[0].isdecimal() else 0


def _chosen(path: Path) -> str:
    """The word in brackets: "always [madvise] never"."""
    try:
        return path.read_text().partition("[")[2].partition("]")[0]
    except OSError:
        return ""
