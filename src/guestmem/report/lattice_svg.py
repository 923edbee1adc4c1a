"""A lattice as an SVG picture: strictest rules at the bottom, an arrow from each to the next looser ones.

A node is one row below the lowest node above it, so that arrows cross another row only where they must. The same
lattice always gives the same text.
"""

from __future__ import annotations

from html import escape

from guestmem.proofs.lattice import Lattice

__all__ = ("svg",)

_WIDTH, _LINE, _PAD, _GAP_X, _GAP_Y = 180, 16, 8, 16, 52


def svg(lattice: Lattice, title: str) -> str:
    """The picture."""
    rows = _rows(lattice)
    heights = [max(len(lattice.nodes[node]) for node in row) * _LINE + 2 * _PAD for row in rows]
    width = max(len(row) for row in rows) * (_WIDTH + _GAP_X) + _GAP_X
    height = sum(heights) + _GAP_Y * (len(rows) - 1) + 2 * _GAP_X
    boxes: dict[int, tuple[float, float, float]] = {}
    bottom = float(height - _GAP_X)
    for row, row_height in zip(rows, heights, strict=True):
        left = (width - len(row) * (_WIDTH + _GAP_X) + _GAP_X) / 2
        for place, node in enumerate(row):
            own = len(lattice.nodes[node]) * _LINE + 2 * _PAD
            boxes[node] = (left + place * (_WIDTH + _GAP_X), bottom - row_height, own)
        bottom -= row_height + _GAP_Y
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12">',
        f"<title>{escape(title)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#456"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for low, high in lattice.edges:
        lines.append(_arrow(boxes[low], boxes[high]))
    for node, names in enumerate(lattice.nodes):
        lines += _box(boxes[node], names)
    return "\n".join([*lines, "</svg>", ""])


def _rows(lattice: Lattice) -> list[list[int]]:
    below = dict.fromkeys(range(len(lattice.nodes)), 0)
    for _ in lattice.nodes:
        for low, high in lattice.edges:
            below[low] = max(below[low], below[high] + 1)
    rows: list[list[int]] = [[] for _ in range(max(below.values()) + 1)]
    for node, row in below.items():
        rows[len(rows) - 1 - row].append(node)
    place: dict[int, int] = {}
    for row_nodes in rows:
        row_nodes.sort(key=lambda node: _mean([place[low] for low, high in lattice.edges if high == node]))
        place |= {node: index for index, node in enumerate(row_nodes)}
    return rows


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers) if numbers else 0.0


def _arrow(low: tuple[float, float, float], high: tuple[float, float, float]) -> str:
    x1, y1, x2, y2 = low[0] + _WIDTH / 2, low[1], high[0] + _WIDTH / 2, high[1] + high[2]
    return f'<path d="M{x1:g} {y1:g} L{x2:g} {y2 + 1:g}" stroke="#456" fill="none" marker-end="url(#tip)"/>'


def _box(box: tuple[float, float, float], names: tuple[str, ...]) -> list[str]:
    x, y, height = box
    lines = [f'<rect x="{x:g}" y="{y:g}" width="{_WIDTH}" height="{height:g}" rx="4" fill="#eef3f8" stroke="#456"/>']
    for line, name in enumerate(names):
        text_y = y + _PAD + _LINE * line + 12
        lines.append(f'<text x="{x + _WIDTH / 2:g}" y="{text_y:g}" text-anchor="middle">{escape(name)}</text>')
    return lines
