"""Print docs/rules.md, every alignment rule on every layout of examples/layouts: `make docs` writes it."""

from __future__ import annotations

from pathlib import Path

from guestmem.geometry import X86_64
from guestmem.layout.bound import PACKINGS, judge
from guestmem.layout.recognise import load, read
from guestmem.report.rules_markdown import to_markdown

__all__ = ("page",)

LAYOUTS = Path(__file__).parent.parent / "examples" / "layouts"
ENDINGS = (".txt", ".xml", ".json", ".toml")


def page() -> str:
    """The page."""
    verdicts = [
        judge(layout, packing, X86_64.page_sizes[-1], X86_64)
        for path in sorted(LAYOUTS.iterdir())
        if path.suffix in ENDINGS
        for layout in read(path.name, load(str(path)))
        if layout.slots
        for packing in PACKINGS
    ]
    return to_markdown(verdicts, "make docs")


if __name__ == "__main__":
    print(page(), end="")
