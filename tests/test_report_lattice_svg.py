"""The lattice as a picture: every rule is in it once, below the rules that it implies."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

pytest.importorskip("z3", reason="guestmem prove is not installed: pip install 'guestmem[proofs]'")

from guestmem.proofs.lattice import Lattice, draw
from guestmem.proofs.verdict import Holds, Refuted
from guestmem.report.lattice_svg import svg

LATTICE = Lattice((("a",), ("b", "same as b"), ("c <&>",)), ((0, 1), (1, 2)), ())
TEXT = "{http://www.w3.org/2000/svg}text"


def heights(picture: str) -> dict[str, float]:
    return {each.text or "": float(each.attrib["y"]) for each in ElementTree.fromstring(picture).iter(TEXT)}


def test_every_rule_is_in_it_and_names_are_escaped() -> None:
    assert set(heights(svg(LATTICE, "title"))) == {"a", "b", "same as b", "c <&>"}


def test_stricter_rules_are_drawn_below_looser_ones() -> None:
    y = heights(svg(LATTICE, "title"))

    assert y["a"] > y["b"] > y["c <&>"]


def test_there_is_an_arrow_for_each_edge() -> None:
    assert len(re.findall("marker-end", svg(LATTICE, "title"))) == len(LATTICE.edges)


def test_the_same_lattice_is_the_same_file() -> None:
    assert svg(LATTICE, "title") == svg(LATTICE, "title")


def test_rules_that_imply_each_other_are_one_node_and_what_follows_is_left_out() -> None:
    implied = {("a", "b"), ("b", "a"), ("a", "c"), ("b", "c"), ("c", "d"), ("a", "d"), ("b", "d")}
    names = ["a", "b", "c", "d"]
    verdicts = {(x, y): Holds() if (x, y) in implied else Refuted({}) for x in names for y in names if x != y}

    lattice = draw(names, verdicts)

    assert lattice.nodes == (("a", "b"), ("c",), ("d",))
    assert lattice.edges == ((0, 1), (1, 2))
