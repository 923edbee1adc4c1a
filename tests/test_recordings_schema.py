"""`guestmem schema recording` against real recordings, and against lines that the reader refuses."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from guestmem.recordings.reader import RecordingError, sequences_in
from guestmem.recordings.schema import schema

RECORDINGS = sorted((Path(__file__).parent.parent / "examples" / "recordings").glob("*.jsonl.gz"))
SCHEMA = schema()
WHOLE = Draft202012Validator(SCHEMA)
# What a line of each operation must be. Trying all operations on all lines takes a hundred times longer.
PARTS = {
    op: Draft202012Validator({"$ref": where, "$defs": SCHEMA["$defs"]})
    for op, where in SCHEMA["discriminator"]["mapping"].items()
}
BEGIN = {"op": "begin", "seq": "s", "i": -1}
DUP = {"op": "dup", "seq": "s", "i": 0, "fd": "kvm", "out": "fd0"}
TOUCH = {"op": "run_touch", "seq": "s", "i": 0, "vm": "vm0", "vcpu": "vcpu0", "boot_gpa": 0}


def is_read(line: dict[str, Any]) -> bool:
    """Whether the reader takes the line, after a begin line if it is none."""
    lines = [line] if line.get("op") == "begin" else [BEGIN, line]
    try:
        list(sequences_in(io.BytesIO("\n".join(map(json.dumps, lines)).encode()), "test"))
    except RecordingError:
        return False
    return True


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.name)
def test_every_line_of_a_real_recording_is_valid(path: Path) -> None:
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]

    for line in lines:
        PARTS[line["op"]].validate(line)
    for line in {line["op"]: line for line in lines}.values():
        WHOLE.validate(line)


RIGHT = [
    BEGIN,
    {**BEGIN, "profile": "v6.12", "vm_types": [0, 1], "gpa_bits": 40, "pools": {"2M": 3}},
    DUP,
    {**DUP, "fd": -1, "result": "fd0", "errno": None},
    {**TOUCH, "touches": [{"gpa": (1 << 64) - 1, "rw": "r", "size": 1}]},
]
WRONG = [
    {**BEGIN, "op": "start"},
    {**BEGIN, "gpa_bits": 20},
    {**BEGIN, "vm_types": [5]},
    {key: value for key, value in DUP.items() if key != "op"},
    {key: value for key, value in DUP.items() if key != "out"},
    {**DUP, "extra": 1},
    {**DUP, "fd": None},
    {**DUP, "errno": 9},
    {**TOUCH, "touches": [{"gpa": 0, "rw": "r", "size": 3}]},
    {**TOUCH, "touches": [{"gpa": -1, "rw": "r", "size": 1}]},
    {**TOUCH, "touches": [{"gpa": 1 << 64, "rw": "r", "size": 1}]},
    {**TOUCH, "touches": [{"gpa": 0, "rw": "rw", "size": 1}]},
]


@pytest.mark.parametrize("line", RIGHT, ids=json.dumps)
def test_schema_and_reader_take_the_line(line: dict[str, Any]) -> None:
    assert is_read(line)
    assert WHOLE.is_valid(line)


@pytest.mark.parametrize("line", WRONG, ids=json.dumps)
def test_schema_and_reader_refuse_the_line(line: dict[str, Any]) -> None:
    assert not is_read(line)
    assert not WHOLE.is_valid(line)
