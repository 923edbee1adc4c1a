"""Addresses of kernel variables, from /proc/kallsyms.

Variables are listed with CONFIG_KALLSYMS_ALL only, and addresses are shown as zeros to readers without CAP_SYSLOG
(kernel.kptr_restrict): both count as absent.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ("SYMBOLS", "read_symbols")

SYMBOLS = ("vm_list", "page_offset_base", "shadow_me_mask")
_PATH = Path("/proc/kallsyms")
_LINE = r"^([0-9a-f]+) \w (%s)(?:\t\[(\w+)\])?$"


def read_symbols(path: Path = _PATH) -> dict[str, int]:
    """The addresses of SYMBOLS that can be read. Of several of one name KVM's own is the one that is meant."""
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return {}
    found: dict[str, int] = {}
    for address, name, module in re.findall(_LINE % "|".join(SYMBOLS), text, re.MULTILINE):
        if int(address, 16) and (module == "kvm" or name not in found):
            found[name] = int(address, 16)
    return found
