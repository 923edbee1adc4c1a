"""The shipped captures, by file name."""

from __future__ import annotations

from pathlib import Path

from guestmem.layout import Layout
from guestmem.layout.recognise import load, read

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = ROOT / "examples" / "layouts"
DATA = Path(__file__).resolve().parent / "data"


def layout(name: str, firecracker: tuple[int, int] | None = None) -> Layout:
    """The only layout in a shipped capture."""
    path = str(LAYOUTS / name)
    (found,) = read(path, load(path), firecracker=firecracker)
    return found


def rows(name: str) -> list[tuple[str, str, str, str]]:
    """(gpa, size, region, offset) of each slot, as hex strings so that a failing test reads like the capture."""
    return [(f"{slot.gpa:#x}", f"{slot.size:#x}", slot.region, f"{slot.offset or 0:#x}") for slot in layout(name).slots]
