"""Print docs/divergences.md from the table of divergences: `make docs` writes it, a test compares it."""

from __future__ import annotations

from guestmem.recordings.divergences import DIVERGENCES

__all__ = ("page",)


def page() -> str:
    """The page."""
    lines = [
        "# Known divergences",
        "",
        "Where the model may differ from a kernel, and why. Nothing else may. `guestmem run` counts those it can",
        "recognise in a recording; the others name what the model leaves out. Source:",
        "`guestmem.recordings.divergences`; this page is written by `make docs`.",
        "",
        "| name | subject | reason | seen in a recording |",
        "| --- | --- | --- | --- |",
    ]
    for entry in DIVERGENCES:
        seen = "yes" if entry.recognise is not None else "no"
        lines.append(f"| {entry.name} | {entry.subject} | {entry.reason} | {seen} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
