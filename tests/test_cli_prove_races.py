"""``guestmem prove races``: what it prints and how it exits."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from guestmem.cli import app
from guestmem.races import MUTATIONS, try_mutation
from guestmem.report.races_text import columns

RACES = ("prove", "races")


def test_pairs_are_summed_up_and_every_mutation_is_named() -> None:
    result = CliRunner().invoke(app, [*RACES, "--actors", "2"])

    assert result.exit_code == 0
    assert "states" in result.stdout
    assert "interleavings" in result.stdout
    assert all(name in result.stdout for name in MUTATIONS)


def test_a_mutation_is_shown_with_its_shortest_schedule() -> None:
    result = CliRunner().invoke(app, [*RACES, "--mutation", "recheck"])

    assert result.exit_code == 0
    assert columns(try_mutation("recheck").exploration) in result.stdout


def test_json_is_one_object_with_the_schedule() -> None:
    result = CliRunner().invoke(app, [*RACES, "--mutation", "flush-before-free", "--json"])
    found = json.loads(result.stdout)

    assert result.exit_code == 0
    assert found["holds"] is True
    assert found["scenarios"] == []
    assert [row["step"] for row in found["mutations"][0]["schedule"]][-1] == "truncate"
    assert found["mutations"][0]["verdict"] == "refuted"


def test_a_mutation_nobody_knows_is_bad_usage_with_the_names() -> None:
    result = CliRunner().invoke(app, [*RACES, "--mutation", "luck"])

    assert isinstance(result.exception, ValueError), "the program's main makes it one line and exit 2"
    assert str(result.exception).startswith("--mutation luck: needed one of recheck, sample-first")


@pytest.mark.parametrize("actors", ["1", "4", "two"])
def test_two_or_three_actors_race(actors: str) -> None:
    assert CliRunner().invoke(app, [*RACES, "--actors", actors]).exit_code == 2


def test_what_does_not_hold_exits_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from guestmem.races import proof

    monkeypatch.setattr(proof, "MUTATIONS", {"recheck": MUTATIONS["recheck"].__class__(
        "recheck", MUTATIONS["recheck"].protocol, "mapped/delete+delete", "A rule that this scenario does not need."
    )})  # fmt: skip

    assert CliRunner().invoke(app, [*RACES, "--mutation", "recheck"]).exit_code == 1
