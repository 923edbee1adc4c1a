"""docs/recordings.md names every operation and every field that recordings have, and no other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from guestmem.harness import BUFFER_ALIGN, BUFFER_SIZE, mmio_answer
from guestmem.recordings.operation import Field, marked
from guestmem.recordings.vocabulary import Begin, Line

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "recordings.md").read_text()
OPERATIONS = {str(kind.__struct_config__.tag): kind for kind in get_args(Line) if kind is not Begin}
COMMON = {"seq", "i", "result", "errno"}
SECTIONS = dict(re.findall(r"^##+ (\S[^\n]*)\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL))


def fields(kind: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(kind)}


def parts(kind: type[msgspec.Struct], name: str) -> set[str]:
    """The fields of the structures in a field's list: touches and exits."""
    [field] = [field for field in msgspec.structs.fields(kind) if field.name == name]
    schema = msgspec.json.schema(field.type)
    return {each for part in schema["$defs"].values() for each in part["properties"]}


def named(text: str) -> set[str]:
    """What a text has in code type."""
    return {word for words in re.findall(r"`([^`]+)`", text) for word in words.split(", ")}


def test_there_is_a_section_for_each_operation() -> None:
    assert {heading for heading in SECTIONS if re.fullmatch("[a-z0-9_]+", heading)} == set(OPERATIONS)


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_section_of_an_operation_names_its_fields(op: str) -> None:
    assert fields(OPERATIONS[op]) - COMMON <= named(SECTIONS[op])


@pytest.mark.parametrize("op", OPERATIONS)
def test_the_section_of_an_operation_says_which_fields_are_observed(op: str) -> None:
    observed = {*marked(OPERATIONS[op], Field.OBSERVED)} - COMMON
    arguments, _, outcome = SECTIONS[op].partition("Observed")

    assert observed <= named(outcome)
    assert not observed & named(arguments)


def test_the_fields_that_all_operations_have_are_named() -> None:
    assert COMMON | {"op"} == named(SECTIONS["Operations"]) & (COMMON | {"op"})


def test_the_fields_of_the_begin_line_are_named() -> None:
    rows = {name for row in re.findall(r"^\| ([^|]+) \|", SECTIONS["Sequences"], re.MULTILINE) for name in named(row)}

    assert rows == fields(Begin)


@pytest.mark.parametrize("name", ["touches", "exits"])
def test_the_fields_of_guest_accesses_and_exits_are_named(name: str) -> None:
    assert parts(OPERATIONS["run_touch"], name) <= named(SECTIONS["Guest accesses"])


def test_the_lines_shown_are_those_of_the_file() -> None:
    match = re.search(r"first lines of `(\S+)`:\n\n```json\n(.*?)```", PAGE, re.DOTALL)

    assert match is not None
    assert (ROOT / match[1]).read_text().startswith(match[2])


def test_the_buffers_and_the_answer_to_mmio_are_those_in_use() -> None:
    assert f"memory of {BUFFER_SIZE >> 20} MiB at a multiple of {BUFFER_ALIGN >> 20} MiB" in SECTIONS["Names"]
    assert f"answered with bytes {mmio_answer(1):#x}" in SECTIONS["Guest accesses"]
