"""What host and guest say to each other: typed messages in frames over one byte stream.

A frame is session (u32), length of the body (u32), both little-endian, then the body: one message in MessagePack.
Session 0 is the machine itself; every other session is one process in the guest, opened by its first message. Within
a session each request has one reply, except that a command may send any number of Output before its Ended.

The stream is a virtio-serial port on one side and a socket on the other; neither keeps message boundaries.
Pure: no descriptor here, only bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Any

import msgspec

from guestmem.errors import InputError, KvmError
from guestmem.lab.errors import LabFailed
from guestmem.units import MIB

__all__ = (
    "MACHINE",
    "PORT",
    "Accepted",
    "Batch",
    "Bug",
    "Call",
    "Command",
    "Done",
    "End",
    "Ended",
    "Frames",
    "HOST_TAG",
    "Hello",
    "Input",
    "Invisible",
    "Open",
    "Opened",
    "Outcome",
    "Output",
    "PowerOff",
    "ProtocolError",
    "Refused",
    "Reply",
    "Request",
    "Returned",
    "Signalled",
    "Unavailable",
    "Work",
    "Worked",
    "convert",
    "decode_reply",
    "decode_request",
    "encode",
    "frame",
)

MACHINE = 0  # the session of the machine itself
PORT = "guestmem"  # the name of the virtio-serial port
HOST_TAG = "hostroot"  # the mount tag of the host's file system (9p)
MAX_BODY = 64 * MIB  # a longer length is garbage on the line, not a message

_HEADER = struct.Struct("<II")


class ProtocolError(LabFailed):
    """The other side sent something that is not a message; one of the two is not the guestmem it says it is."""


class _Message(msgspec.Struct, frozen=True, tag=True, array_like=True, forbid_unknown_fields=True):
    pass


# -- what the host asks --------------------------------------------------------------------------------------------


class Call(_Message, frozen=True):
    """One method of ``guestmem.backend.Backend`` with its positional arguments.

    references are pairs (position, call): the argument at that position is the value which the call of that index in
    the same batch returned; whatever is there is ignored. So a descriptor can be used before it is known.
    """

    method: str
    arguments: tuple[Any, ...] = ()
    references: tuple[tuple[int, int], ...] = ()


class Open(_Message, frozen=True):
    """Start a fresh process with a KvmBackend in this session. Reply: Opened.

    module is one that the machine was booted with, whose function ``work`` answers Work; "" for none.
    """

    module: str = ""


class Batch(_Message, frozen=True):
    """Make calls in order, each whatever became of the ones before. Reply: Done.

    A call with a reference to a call that did not return is not made; its outcome is that call's outcome.
    """

    calls: tuple[Call, ...]


class Work(_Message, frozen=True):
    """Give data to the function ``work`` of the session's module, with its backend. Reply: Worked."""

    data: bytes


class Command(_Message, frozen=True):
    """Run a program of the host's file system, which it sees read-only. Replies: Opened, Output..., at last Ended.

    rows and columns other than 0 give it a terminal of that size.
    """

    argv: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    rows: int = 0
    columns: int = 0


class Input(_Message, frozen=True):
    """Bytes for the command's standard input; none is its end. Reply: Accepted, once written."""

    data: bytes


class End(_Message, frozen=True):
    """Kill this session's process. Reply: Ended."""


class PowerOff(_Message, frozen=True):
    """Session 0: end the machine. No reply."""


Request = Open | Batch | Work | Command | Input | End | PowerOff


# -- what the guest answers ----------------------------------------------------------------------------------------


class Returned(_Message, frozen=True):
    """A call returned value."""

    value: Any


class Refused(_Message, frozen=True):
    """A call raised KvmError."""

    errno: int
    reason: str
    check: str
    hint: str

    @classmethod
    def of(cls, error: KvmError) -> Refused:
        """The refusal as it travels."""
        return cls(error.errno or 0, error.reason, error.check, error.hint)

    def error(self) -> KvmError:
        """The refusal as the caller sees it."""
        return KvmError(self.errno, self.reason, check=self.check, hint=self.hint)


class Signalled(_Message, frozen=True):
    """A call raised HostSignal."""

    signal: str
    reason: str


class Invisible(_Message, frozen=True):
    """A call raised NotVisible."""

    reason: str


class Unavailable(_Message, frozen=True):
    """A call raised BackendUnavailable: the guest's kernel has no usable /dev/kvm."""

    reason: str


class Bug(_Message, frozen=True):
    """A call raised what it must not, or did not exist: ``trace`` says where."""

    error: str
    trace: str


Outcome = Returned | Refused | Signalled | Invisible | Unavailable | Bug


class Hello(_Message, frozen=True):
    """Session 0, once: the machine is up. version is guestmem's, release the kernel's (uname -r)."""

    version: str
    release: str


class Opened(_Message, frozen=True):
    """The session's process runs; pid is its number in the guest."""

    pid: int


class Done(_Message, frozen=True):
    """The outcomes of a Batch, one for each call."""

    outcomes: tuple[Outcome, ...]


class Worked(_Message, frozen=True):
    """What the module's function gave."""

    data: bytes


class Output(_Message, frozen=True):
    """Bytes the command wrote; stream 1 or 2, with a terminal always 1."""

    stream: int
    data: bytes


class Accepted(_Message, frozen=True):
    """The Input was written, or the command had closed its standard input."""


class Ended(_Message, frozen=True):
    """The session's process ended, as waitpid reports it (status); the session is free."""

    status: int

    def code(self) -> int:
        """Its exit code; negative: the signal that killed it. ProtocolError if no process can end like this."""
        try:
            return os.waitstatus_to_exitcode(self.status)
        except (ValueError, OverflowError) as wrong:
            raise ProtocolError(f"a process ended with status {self.status:#x}: {wrong}") from None


Reply = Hello | Opened | Done | Worked | Output | Accepted | Ended


# -- bytes -------------------------------------------------------------------------------------------------------


def _enc_hook(value: object) -> object:
    # PreFaultResult carries a refusal in a value.
    if isinstance(value, KvmError):
        return Refused.of(value)
    raise NotImplementedError(f"{type(value).__name__} does not travel to the lab")


def _dec_hook(kind: type, value: Any) -> object:
    if kind is KvmError:
        return msgspec.convert(value, Refused).error()
    raise NotImplementedError(kind.__name__)


# What msgspec raises for bytes and values of strangers: also text that is no UTF-8, and lists in lists without end.
_NO_MESSAGE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError)

_encoder = msgspec.msgpack.Encoder(enc_hook=_enc_hook)
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_replies: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Request | Reply) -> bytes:
    """The body of a message; ValueError for an argument that does not fit in 64 bits or is of no known kind."""
    try:
        return _encoder.encode(message)
    except (OverflowError, NotImplementedError, TypeError, UnicodeEncodeError) as wrong:
        raise InputError(f"cannot be sent to the lab: {wrong}") from wrong


def decode_request(body: bytes) -> Request:
    """The request in a body; ProtocolError if it is none."""
    try:
        return _requests.decode(body)
    except _NO_MESSAGE as wrong:
        raise ProtocolError(f"not a request: {wrong}") from wrong


def decode_reply(body: bytes) -> Reply:
    """The reply in a body; ProtocolError if it is none."""
    try:
        return _replies.decode(body)
    except _NO_MESSAGE as wrong:
        raise ProtocolError(f"not a reply: {wrong}") from wrong


def convert(value: Any, kind: Any) -> Any:
    """A travelled value as kind (a type of backend.py, or None); ProtocolError if it is not of that kind."""
    try:
        return msgspec.convert(value, kind, dec_hook=_dec_hook)
    except _NO_MESSAGE as wrong:
        raise ProtocolError(f"not a value of this call: {wrong}") from wrong


def frame(session: int, body: bytes) -> bytes:
    """A body as it goes over the stream."""
    return _HEADER.pack(session, len(body)) + body


class Frames:
    """The frames of a stream that arrives in pieces of any size."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take bytes from the stream; yield (session, body) of every frame now complete."""
        self._pending += data
        while len(self._pending) >= _HEADER.size:
            session, length = _HEADER.unpack_from(self._pending)
            if length > MAX_BODY:
                raise ProtocolError(f"a frame of {length} bytes; the largest is {MAX_BODY}")
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            body = bytes(self._pending[_HEADER.size : end])
            del self._pending[:end]
            yield session, body
