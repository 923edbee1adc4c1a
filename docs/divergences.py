"""Print docs/divergences.md from the table of divergences: `make docs` writes it, a test compares it."""

from __future__ import annotations

from guestmem.recordings.divergences import DIVERGENCES

__all__ = ("page",)


def page() -> str:
    """The page."""
    lines = [
        "# Known divergences",
        "",
        "The model may differ from a kernel in these ways, for these reasons, and in no others. `guestmem run` counts",
        "those that it can recognise in a recording. The others are what the model leaves out. The source is",
        "`guestmem.recordings.divergences`; `make docs` writes this page.",
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
