"""A kernel is known by its options; what a source does not offer is noticed."""

from __future__ import annotations

import pytest

from guestmem.lab.config import REQUIRED, config_key, fragment, missing


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        ("CONFIG_A=y\n", "CONFIG_A=y", True),
        ("CONFIG_A=y\nCONFIG_B=y\n", "# comment\n\nCONFIG_B=y\nCONFIG_A=y\n", True),
        ("CONFIG_A=y\n", "CONFIG_A=n\n", False),
        ("CONFIG_A=y\n", "CONFIG_A=y\nCONFIG_B=y\n", False),
        ('CONFIG_L="a=b"\n', 'CONFIG_L="a=c"\n', False),
    ],
)
def test_the_key_changes_when_an_option_does(left: str, right: str, same: bool) -> None:
    assert (config_key(left) == config_key(right)) is same


@pytest.mark.parametrize(
    ("asked", "made", "lacking"),
    [
        ("CONFIG_A=y", "CONFIG_A=y\n", ()),
        ("CONFIG_A=y", "# CONFIG_A is not set\n", ("CONFIG_A",)),
        ("CONFIG_A=y", "", ("CONFIG_A",)),
        ("CONFIG_A=y", "CONFIG_A=m\n", ("CONFIG_A",)),
        ("CONFIG_A=n", "# CONFIG_A is not set\n", ()),
        ("CONFIG_A=n", "", ()),
        ("CONFIG_A=n", "CONFIG_A=y\n", ("CONFIG_A",)),
        ("CONFIG_N=8\nCONFIG_A=y", "CONFIG_N=64\nCONFIG_A=y\n", ("CONFIG_N",)),
    ],
)
def test_an_option_that_came_out_otherwise_is_missing(asked: str, made: str, lacking: tuple[str, ...]) -> None:
    assert missing(asked, made) == lacking


def test_the_fragment_asks_for_each_required_option_and_for_none_twice() -> None:
    names = [line.partition("=")[0] for line in fragment().splitlines() if line.startswith("CONFIG_")]
    assert len(names) == len(set(names))
    assert set(REQUIRED) <= set(names)


def test_what_is_no_option_is_a_comment() -> None:
    assert [line for line in fragment().splitlines() if line and not line.startswith(("#", "CONFIG_"))] == []
