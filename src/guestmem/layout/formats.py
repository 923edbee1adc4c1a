"""The formats that can be read: how each is recognised, who reads it, and what it is.

Recognition looks at content, not at names: at the first bytes, the keys of a JSON document, or words that only its
writer prints. Where two formats have the same key, the first of the table is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from guestmem.layout.budget import MAX_BYTES, MAX_DOCUMENT, MAX_TOML

__all__ = ("FORMATS", "Format", "reader")


@dataclass(frozen=True, slots=True)
class Format:
    """A format; ``layouts`` and ``fleet`` are its readers, "MODULE.FUNCTION" of ``guestmem.layout.readers``, or "".

    start: the first bytes after blanks. keys: one of them is in the document's object; "[].KEY" is in the first
    object of a list, "lines.KEY" in the first line of JSON Lines, "config.KEY" inside of "config". text: a pattern.
    most: the bytes that are read; fewer of what is decoded as a whole.
    """

    title: str
    layouts: str = ""
    fleet: str = ""
    start: bytes = b""
    keys: tuple[str, ...] = ()
    text: bytes = b""
    most: int = MAX_BYTES

    def starts(self, data: bytes) -> bool:
        """Whether the file begins as this format does."""
        return self.start != b"" and data.startswith(self.start)

    def has_key(self, keys: Container[str]) -> bool:
        """Whether one of the keys tells this format."""
        return any(key in keys for key in self.keys)

    def is_named_in(self, head: bytes, place: str = "") -> bool:
        """Whether JSON that is not decoded holds the name of one of the keys, of those in one place only."""
        names = (key.rpartition(".")[2] for key in self.keys if not key.startswith("lines.") and key.startswith(place))
        return any(b'"%b"' % name.encode() in head for name in names)

    def has_text(self, data: bytes) -> bool:
        """Whether a line of the text is one that only this format has."""
        return self.text != b"" and re.search(self.text, data, re.MULTILINE) is not None


def reader(name: str) -> Callable[..., Any]:
    """The function that a format names."""
    module, _, function = name.partition(".")
    found: Callable[..., Any] = getattr(import_module(f"guestmem.layout.readers.{module}"), function)
    return found


FORMATS = {
    "qemu-mtree": Format(
        "QEMU monitor text: info mtree -f, info ramblock",
        "qemu_mtree.read",
        keys=("return",),
        text=rb"^FlatView #\d|^(address-space|memory-region): ",
    ),
    "qemu-trace": Format(
        "QEMU trace event kvm_set_user_memory",
        "qemu_trace.read",
        text=rb"kvm_set_user_memory (AddrSpace#\d+ )?Slot#|KVM_SET_USER_MEMORY_REGION2? failed, slot=",
    ),
    "qemu-argv": Format(
        "QEMU command line",
        "qemu_argv.read",
        text=rb"\bqemu-(system-\w+|kvm)\b[\s\S]{0,4096}?\s--?(machine|M|m|object)\s",
        most=MAX_DOCUMENT,
    ),
    "libvirt": Format("libvirt domain XML", "libvirt.read", start=b"<", most=MAX_DOCUMENT),
    "firecracker": Format(
        "Firecracker config",
        "firecracker.read",
        keys=("machine-config", "boot-source", "mem_size_mib"),
        most=MAX_DOCUMENT,
    ),
    "firecracker-uffd": Format(
        "Firecracker UFFD handshake", "firecracker.read_uffd", keys=("[].base_host_virt_addr",), most=MAX_DOCUMENT
    ),
    "gdb-dump": Format("debugger dump of the memory ioctls", "gdb_dump.read", text=rb"^IOCTL fd=-?\d+ cmd=0x"),
    "strace": Format("strace log of a VMM", "strace.read", text=rb"\bioctl\((fd=)?(0x)?\d"),
    "recording": Format("guestmem recording, JSON Lines", "recording.read", keys=("op", "lines.op")),
    "guestmem-host": Format("guestmem host --save", "host.read", keys=("vms",), most=MAX_DOCUMENT),
    "guestmem-fleet": Format(
        "guestmem layouts, JSON Lines", "own.read_fleet", "fleet_jsonl.read", keys=("lines.slots",)
    ),
    "guestmem-json": Format("guestmem layout, JSON", "own.read_json", keys=("slots",), most=MAX_DOCUMENT),
    "guestmem-toml": Format(
        "guestmem layout, TOML", "own.read_toml", text=rb"^[ \t]*(\[\[slots\]\]|slots[ \t]*=)", most=MAX_TOML
    ),
    "guestmem-parquet": Format("slots of many VMs, Parquet", fleet="fleet_parquet.read", start=b"PAR1"),
    "cloud-hypervisor": Format(
        "Cloud Hypervisor VM config", "cloud_hypervisor.read", keys=("memory", "config.memory"), most=MAX_DOCUMENT
    ),
}
