"""From a file's bytes to layouts: which format it is, and the reader for it.

Recognition looks at content, not at names. Formats whose structure is a document are told apart by their keys, text
formats by the words only they print. Bytes are bounded before anything looks at them: a gzip of nothing and a file of
a gigabyte end in one clear line.
"""

from __future__ import annotations

import gzip
import io
import re
import sys
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from guestmem.layout.error import LayoutError, printable
from guestmem.layout.value import Layout
from guestmem.units import MIB, format_size

if TYPE_CHECKING:
    from guestmem.layout.fleet import Fleet

__all__ = ("FORMATS", "MAX_BYTES", "Options", "load", "read", "read_fleet", "recognise")

MAX_BYTES = 256 * MIB
_HEAD = 1 << 16
_FLEETS = {"guestmem-fleet": "fleet_jsonl", "guestmem-parquet": "fleet_parquet"}
_TEXT_MARKS = (
    (rb"^FlatView #\d|^(address-space|memory-region): ", "qemu-mtree"),
    (rb"kvm_set_user_memory (AddrSpace#\d+ )?Slot#", "qemu-trace"),
    (rb"^IOCTL fd=-?\d+ cmd=0x", "gdb-dump"),
    (rb"\bioctl\((fd=)?(0x)?\d", "strace"),
    (rb"^[ \t]*(\[\[slots\]\]|slots[ \t]*=)", "guestmem-toml"),
)


@dataclass(frozen=True, slots=True)
class Options:
    """What a source cannot tell and a reader needs: Firecracker's version."""

    firecracker: tuple[int, int] = (1, 13)


@dataclass(frozen=True, slots=True)
class Format:
    """A readable format: where its reader is, and what the file is in words."""

    module: str
    title: str
    function: str = "read"
    versioned: bool = False
    fleet: bool = False  # only a fleet, too large for one layout after the other


FORMATS = {
    "qemu-mtree": Format("qemu_mtree", "QEMU monitor text: info mtree -f, info ramblock"),
    "qemu-trace": Format("qemu_trace", "QEMU trace event kvm_set_user_memory"),
    "libvirt": Format("libvirt", "libvirt domain XML"),
    "cloud-hypervisor": Format("cloud_hypervisor", "Cloud Hypervisor VM config"),
    "firecracker": Format("firecracker", "Firecracker config", versioned=True),
    "firecracker-uffd": Format("firecracker", "Firecracker UFFD handshake", "read_uffd", versioned=True),
    "strace": Format("strace", "strace log of a VMM"),
    "gdb-dump": Format("gdb_dump", "debugger dump of the memory ioctls"),
    "guestmem-json": Format("own", "guestmem layout, JSON", "read_json"),
    "guestmem-toml": Format("own", "guestmem layout, TOML", "read_toml"),
    "guestmem-fleet": Format("own", "guestmem layouts, JSON Lines", "read_fleet"),
    "guestmem-parquet": Format("fleet_parquet", "slots of many VMs, Parquet", fleet=True),
    "guestmem-host": Format("host", "guestmem host, saved"),
    "recording": Format("recording", "guestmem recording, JSON Lines"),
}


def load(source: str) -> bytes:
    """The bytes of a file ("-": standard input), unpacked if gzip, at most MAX_BYTES."""
    try:
        if source == "-":
            if sys.stdin is None:  # the shell closed it: <&-
                raise LayoutError(source, "standard input is closed")
            data = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(source).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise LayoutError(source, f"cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise LayoutError(source, f"is no file name: {error}") from None
    if data[:2] == b"\x1f\x8b":
        data = _unpack(source, data)
    if len(data) > MAX_BYTES:
        remedy = "keep the lines that matter, as in grep kvm_set_user_memory"
        raise LayoutError(source, f"at most {format_size(MAX_BYTES)} are read", remedy=remedy)
    return data.removeprefix(BOM_UTF8)


def read(source: str, data: bytes, format: str | None = None, options: Options | None = None) -> list[Layout]:
    """The layouts in a file's bytes; ``format`` is recognised when None."""
    if format is not None and format not in FORMATS:
        raise LayoutError(source, f"needed one of {', '.join(FORMATS)}", field="format", value=format)
    name = format or recognise(source, data)
    if name == "qemu-mtree":
        data = _monitor_text(data)
    chosen = FORMATS[name]
    if chosen.fleet:
        raise LayoutError(source, f"{chosen.title} is read by 'guestmem check' only")
    reader: Callable[..., list[Layout]] = getattr(
        import_module(f"guestmem.layout.readers.{chosen.module}"), chosen.function
    )
    if chosen.versioned:
        return reader(source, data, version=(options or Options()).firecracker)
    return reader(source, data)


def read_fleet(source: str, data: bytes, format: str | None = None) -> Fleet | None:
    """The fleet in a file's bytes, or None when the format is none of a fleet."""
    name = format or recognise(source, data)
    if name not in _FLEETS:
        return None
    reader: Callable[[str, bytes], Fleet] = import_module(f"guestmem.layout.readers.{_FLEETS[name]}").read
    return reader(source, data)


def recognise(source: str, data: bytes) -> str:
    """The name of the format; a LayoutError lists the known ones when it is none of them."""
    if not data.strip():
        raise LayoutError(source, "the file is empty")
    if data[:4] == b"PAR1":
        return "guestmem-parquet"
    head = data[:_HEAD].lstrip()
    if head[:1] == b"<":
        return "libvirt"
    found = _recognise_json(data) if head[:1] in (b"{", b"[") else None
    found = found or _recognise_text(data)  # "[" starts TOML and strace -f too
    if found is None:
        titles = "; ".join(f"{name} ({known.title})" for name, known in FORMATS.items())
        raise LayoutError(source, f"no known format: {titles}", remedy="name it with --format")
    return found


def _unpack(source: str, data: bytes) -> bytes:
    try:
        with gzip.open(io.BytesIO(data)) as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise LayoutError(source, f"needed gzip ({printable(error, 80)})") from None


def _recognise_json(data: bytes) -> str | None:
    """By keys; a document that is JSON Lines is judged by its first line that is an object."""
    whole = True
    try:
        value: Any = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        whole = False
        try:
            value = msgspec.json.decode(data.lstrip().split(b"\n", 1)[0])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            # Neither a document nor lines: let the reader of the likeliest format say what is wrong with it.
            return _recognise_broken(data[:_HEAD])
    if isinstance(value, list):
        is_uffd = bool(value) and isinstance(value[0], dict) and "base_host_virt_addr" in value[0]
        return "firecracker-uffd" if is_uffd else None
    if not isinstance(value, dict):
        return None
    if "op" in value:
        return "recording"
    if "vms" in value:
        return "guestmem-host"
    if "slots" in value:
        return "guestmem-json" if whole else "guestmem-fleet"
    if "return" in value:
        return "qemu-mtree"
    if "machine-config" in value or "boot-source" in value or "mem_size_mib" in value:
        return "firecracker"
    config = value.get("config", value)
    return "cloud-hypervisor" if isinstance(config, dict) and "memory" in config else None


def _recognise_broken(head: bytes) -> str | None:
    for mark, name in (
        (b'"op"', "recording"),
        (b'"guestmem-host/', "guestmem-host"),
        (b'"slots"', "guestmem-json"),
        (b'"base_host_virt_addr"', "firecracker-uffd"),
        (b'"machine-config"', "firecracker"),
        (b'"memory"', "cloud-hypervisor"),
    ):
        if mark in head:
            return name
    return None


def _recognise_text(data: bytes) -> str | None:
    for mark, name in _TEXT_MARKS:
        if re.search(mark, data, re.MULTILINE):
            return name
    return None


def _monitor_text(data: bytes) -> bytes:
    """Monitor text out of QMP answers ({"return": "FlatView..."}), or the text as it is."""
    if data.lstrip()[:1] != b"{":
        return data
    texts = []
    for line in data.splitlines():
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            continue
        answer = value.get("return") if isinstance(value, dict) else None
        if isinstance(answer, dict):
            answer = answer.get("human-readable-text")
        if isinstance(answer, str):
            texts.append(answer)
    return "\n".join(texts).encode("utf-8", "replace")
