"""One session's process in the guest: a backend, and the calls that arrive for it.

The backend is ``guestmem.kvm``'s in the lab; any other will do (tests use the model). Methods and the types of their
arguments are those of the protocols ``Backend`` and ``Statistics``: what is not there cannot be called.
"""

from __future__ import annotations

import inspect
import socket
import traceback
import typing
from collections.abc import Callable
from functools import cache
from typing import Any

from guestmem.backend import METHODS, Backend
from guestmem.errors import BackendUnavailable, HostSignal, KvmError, NotVisible
from guestmem.lab import channel

__all__ = ("Work", "answer", "serve")

_CHUNK = 1 << 16
Work = Callable[[Backend, bytes], bytes]


def serve(link: socket.socket, session: int, backend: Backend, work: Work | None = None) -> None:
    """Answer every batch, and with work what it is to do, that arrives over link, until it closes."""
    frames = channel.Frames()
    while data := link.recv(_CHUNK):
        for _, body in frames.feed(data):
            reply: channel.Reply
            match channel.decode_request(body):
                case channel.Batch() as batch:
                    reply = answer(backend, batch)
                case channel.Work(asked) if work is not None:
                    reply = channel.Worked(work(backend, asked))
                case other:
                    raise channel.ProtocolError(f"{type(other).__name__} to a session that has a backend")
            link.sendall(channel.frame(session, channel.encode(reply)))


def answer(backend: Backend, batch: channel.Batch) -> channel.Done:
    """Make the calls of a batch, in order."""
    outcomes: list[channel.Outcome] = []
    for call in batch.calls:
        outcomes.append(_outcome(backend, call, outcomes))
    return channel.Done(tuple(outcomes))


def _outcome(backend: Backend, call: channel.Call, before: list[channel.Outcome]) -> channel.Outcome:
    try:
        arguments = list(call.arguments)
        for position, earlier in call.references:
            known = before[earlier]
            if not isinstance(known, channel.Returned):
                return known
            arguments[position] = known.value
        return channel.Returned(getattr(backend, call.method)(*_typed(call.method, arguments)))
    except KvmError as refused:
        return channel.Refused.of(refused)
    except HostSignal as signal:
        return channel.Signalled(signal.signal, signal.reason)
    except NotVisible as reason:
        return channel.Invisible(str(reason))
    except BackendUnavailable as reason:
        return channel.Unavailable(str(reason))
    except Exception as bug:  # the border of a process: whatever it is, the caller must hear of it
        return channel.Bug(f"{type(bug).__name__}: {bug}", traceback.format_exc())


def _typed(method: str, arguments: list[Any]) -> list[Any]:
    kinds = _argument_types(method)
    if len(arguments) > len(kinds):
        raise channel.ProtocolError(f"{method} takes {len(kinds)} arguments, not {len(arguments)}")
    return [channel.convert(value, kind) for value, kind in zip(arguments, kinds, strict=False)]


@cache
def _argument_types(method: str) -> tuple[Any, ...]:
    if method not in METHODS:
        raise channel.ProtocolError(f"a backend has no {method!r}")
    function: Callable[..., Any] = METHODS[method]
    hints = typing.get_type_hints(function)
    return tuple(hints[name] for name in inspect.signature(function).parameters if name != "self")
