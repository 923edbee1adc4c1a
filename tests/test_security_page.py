"""The limits that docs/security.md names are those of the code."""

from __future__ import annotations

import re

import pytest
from examples import ROOT

from guestmem.lab import channel, machine
from guestmem.layout import budget, live, text
from guestmem.recordings import reader
from guestmem.units import KIB, MIB

LIMITS = {
    "a source, after gzip is unpacked": budget.MAX_BYTES,
    "a JSON or XML document": budget.MAX_DOCUMENT,
    "a TOML document": budget.MAX_TOML,
    "a line of a capture or recording": text.MAX_LINE,
    "a sequence of a recording": reader.MAX_SEQUENCE_BYTES,
    "slots of all layouts of a source": budget.MAX_SLOTS,
    "private ranges of all layouts of a source": budget.MAX_RANGES,
    "layouts of a source": budget.MAX_LAYOUTS,
    "slots, and VMs, of a fleet": budget.MAX_ROWS,
    "mappings, descriptors and blocks that a log tells of": budget.MAX_KEPT,
    "characters of a name in a capture or a fleet": budget.MAX_NAME,
    "slots for which `plan` looks for offsets": budget.MAX_PLANNED,
    "the start of a QEMU, and its answers": (live.START_S, live.ANSWER_S),
    "the boot of a lab, and its answers": (machine.BOOT_LIMIT_S, machine.ANSWER_LIMIT_S),
    "a message of the lab's guest": channel.MAX_BODY,
}
UNITS = {"": 1, " s": 1, " KiB": KIB, " MiB": MIB}
PAGE = (ROOT / "docs" / "security.md").read_text()
ROWS = dict(
    re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", PAGE.partition("## Limits")[2].partition("\n## ")[0], re.MULTILINE)
)


def numbers(cell: str) -> tuple[float, ...]:
    """The values of a cell, in bytes, seconds or pieces."""
    found = re.findall(r"([\d,]*\d)( s| KiB| MiB|)", cell)
    return tuple(int(value.replace(",", "")) * UNITS[unit] for value, unit in found)


def test_the_page_names_each_limit_once() -> None:
    assert set(ROWS) - {"of", "---"} == set(LIMITS)
    assert text.MAX_LINE == reader.MAX_LINE_BYTES


@pytest.mark.parametrize("name", LIMITS)
def test_a_limit_on_the_page_is_that_of_the_code(name: str) -> None:
    limit = LIMITS[name]
    assert numbers(ROWS[name]) == (limit if isinstance(limit, tuple) else (limit,))
