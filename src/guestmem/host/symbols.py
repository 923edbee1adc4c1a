"""Addresses of kernel variables, from /proc/kallsyms.

Variables are listed with CONFIG_KALLSYMS_ALL only, and addresses are shown as zeros to readers without CAP_SYSLOG
(kernel.kptr_restrict): both count as absent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ("SYMBOLS", "read_symbols")

SYMBOLS = ("vm_list", "page_offset_base", "shadow_me_mask")
_PATH = Path("/proc/kallsyms")
_LINE = rb"^([0-9a-f]+) \w %b(?:\t\[(\w+)\])?$"


def read_symbols(path: Path = _PATH) -> dict[str, int]:
    """The addresses of SYMBOLS that can be read. Of several of one name KVM's own is the one that is meant."""
    try:
        text = path.read_bytes()
    except OSError:
        return {}
    found: dict[str, int] = {}
    for name in SYMBOLS:
        for line in _lines_with(text, b" " + name.encode()):
            match = re.match(_LINE % name.encode(), line)
            if match is not None and int(match[1], 16) and (match[2] == b"kvm" or name not in found):
                found[name] = int(match[1], 16)
    return found


def _lines_with(text: bytes, part: bytes) -> Iterator[bytes]:
    """The lines that hold ``part``: looking for it is ten times faster than matching each line."""
    at = text.find(part)
    while at >= 0:
        start, end = text.rfind(b"\n", 0, at) + 1, text.find(b"\n", at)
        yield text[start : end if end >= 0 else len(text)]
        at = text.find(part, at + 1)
