"""In the place of QEMU: a lab whose guest does not speak as it should. MODE says how."""

import os
import re
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

MODE = os.environ["MODE"]
ARGUMENTS = " ".join(sys.argv)
(PORT,) = map(int, re.findall(r"id=port,fd=(\d+)", ARGUMENTS))
encode = msgspec.msgpack.encode
ANSWERS: dict[str, Callable[[int], bytes]] = {  # to a batch of some calls
    "badreply": lambda calls: b"\xc7" * 30,
    "noutf8": lambda calls: b"\x92\xa6Opened\xa2\xff\xff",
    "nesting": lambda calls: b"\x92\xa4Done" + b"\x91" * 200_000,
    "wrongreply": lambda calls: encode(["Opened", 5]),
    "nostatus": lambda calls: encode(["Ended", 1 << 40]),
    "short": lambda calls: encode(["Done", []]),
    "nested": lambda calls: encode(["Done", [["Returned", [[[[[]]]]]]] * calls]),
    "values": lambda calls: encode(["Done", [["Returned", None]] * calls]),
    "exits": lambda calls: encode(["Done", [["Returned", [[["done", *[None] * 7]]]]] * calls]),
    "bigint": lambda calls: encode(["Done", [["Returned", 2**64 - 1]] * calls]),
    "bug": lambda calls: encode(["Done", [["Bug", "boom \x1b[2J", "trace\x1b[2J\n line2"]] * calls]),
}
WORK: dict[str, bytes] = {  # to a whole sequence; the other modes end its process, so that call by call comes next
    "badwork": b"\xc7" * 30,
    "wrongwork": encode(["Opened", 5]),
    "nowork": encode(["Worked", b"\xc1"]),
    "nestedwork": encode(["Worked", b"\x91" * 200_000]),
    "shortwork": encode(["Worked", encode([])]),
    "otherwork": encode(
        ["Worked", encode([{"type": "Answered", "operation": {"op": "close", "seq": "", "i": 0, "fd": "vm0"}}] * 5)]
    ),
}


def say(session: int, body: bytes) -> None:
    left = struct.pack("<II", session, len(body)) + body
    while left:
        left = left[os.write(PORT, left) :]


def requests() -> Iterator[tuple[int, list[Any]]]:
    pending = b""
    while data := os.read(PORT, 65536):
        pending += data
        while len(pending) >= 8 and len(pending) >= 8 + struct.unpack_from("<II", pending)[1]:
            session, length = struct.unpack_from("<II", pending)
            yield session, msgspec.msgpack.decode(pending[8 : 8 + length])
            pending = pending[8 + length :]


if MODE == "garbage":
    os.write(PORT, b"\xa5" * 4096)
elif MODE == "badmsg":
    say(0, b"\xc1\xc1")
elif MODE == "wrongmsg":
    say(0, encode(["Opened", 5]))
elif MODE == "huge":
    os.write(PORT, struct.pack("<II", 0, 0x7FFFFFFF))
else:
    say(0, encode(["Hello", "0", "6.12.9\x1b[2J"]))
    for session, request in requests() if MODE != "silent" else ():
        if request[0] in ("Open", "Command"):
            say(session if MODE != "unknownsession" else 99, encode(["Opened", 1]))
            if MODE == "stream":
                say(session, encode(["Output", 7, b"x"]))
        elif request[0] == "Work":
            say(session, WORK.get(MODE) or encode(["Ended", 9]))
        elif request[0] == "Batch":
            say(session, ANSWERS[MODE](len(request[1])))
        elif request[0] == "End":
            say(session, encode(["Ended", 9]))
time.sleep(1000)
