"""Small recordings for the tests: lines as recorders write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from guestmem.recordings.operation import Operation, unrun
from guestmem.recordings.outcome import Answered

Json = dict[str, Any]
SAMPLES = sorted((Path(__file__).parent.parent / "examples" / "recordings").glob("v*.jsonl.gz"))


def begin(profile: str = "612", seq: str = "s", **more: Any) -> Json:
    """A begin line."""
    return {"op": "begin", "seq": seq, "i": -1, "profile": profile, **more}


def line(op: str, i: int = 0, seq: str = "s", **fields: Any) -> Json:
    """An operation's line; without ``errno`` it was never run."""
    return {"op": op, "seq": seq, "i": i, **fields}


def went(op: str, i: int = 0, result: Any = 0, **fields: Any) -> Json:
    """An operation that succeeded."""
    return line(op, i, result=result, errno=None, **fields)


def failed(op: str, errno: str, i: int = 0, **fields: Any) -> Json:
    """An operation that was refused."""
    return line(op, i, result=None, errno=errno, **fields)


def vm(i: int = 0, type: int = 1, out: str = "vm0") -> Json:
    """A VM that was created."""
    return went("create_vm", i, out, type=type, out=out)


def gmem(i: int = 0, flags: int = 0, size: int = 0x4000, out: str = "gm0", vm: str = "vm0") -> Json:
    """A guest_memfd that was created."""
    return went("create_guest_memfd", i, out, vm=vm, size=size, flags=flags, out=out)


def vcpu(i: int = 0, out: str = "cpu0", vm: str = "vm0") -> Json:
    """A vCPU that was created."""
    return went("create_vcpu", i, out, vm=vm, id=0, out=out)


def touches(i: int, *gpas: int, exits: list[list[Json]] | None = None, **more: Any) -> Json:
    """Guest loads of 8 bytes; with ``exits``, as recorded."""
    fields = {"vm": "vm0", "vcpu": "cpu0", "boot_gpa": 0xD0000000, **more}
    fields["touches"] = [{"gpa": gpa, "rw": "r", "size": 8} for gpa in gpas]
    return line("run_touch", i, **fields) if exits is None else went("run_touch", i, exits=exits, **fields)


def write(path: Path, *lines: Json) -> Path:
    """Write a recording."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def answered(
    operation: Operation,
    result: Any = None,
    errno: str | None = None,
    check: str = "",
    reason: str = "",
    **more: Any,
) -> Answered[Any]:
    """The outcome of an operation that a kernel answered so."""
    answer = msgspec.structs.replace(unrun(operation), result=result, errno=errno, **more)
    return Answered(answer, check, reason)
