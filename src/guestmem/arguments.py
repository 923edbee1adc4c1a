"""The numbers that a call can carry, and the check that those of a call are such.

A kernel has fields of so many bits and cannot be given another number. Python has one kind of int, so what does not fit
is refused where a call enters a backend, before anything is touched, and no backend decides what would become of it.
``guestmem.backend`` annotates each argument of its protocols with one of the kinds below; ``checked`` puts the check in
front of the methods of a class that implements them. As dataclasses do, it writes a function for each method: the
arguments of one test cost less than calling a function with them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Final, TypeVar, get_type_hints

from guestmem.errors import CallUnfinished, HostSignal, InputError, KvmError, NotVisible
from guestmem.units import GIB, S64_MAX, U32_MAX

__all__ = ("S32", "S64", "U32", "U64", "Alignment", "Length", "Size", "Turns", "Words", "checked")

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class _Kind:
    """Which integers an argument may be, and the expression that is true of every other, if not only of those."""

    words: str
    allows: Callable[[int], bool]
    suspicious: str
    of_all: bool = False  # it may be asked of several arguments at once, of their bits together


def _between(lowest: int, highest: int, words: str) -> _Kind:
    # ``|`` refuses what is no integer, which a comparison would not.
    return _Kind(words, range(lowest, highest + 1).__contains__, f"not {lowest} <= {{0}} | 0 <= {highest}")


def _unsigned(bits: int) -> _Kind:
    return _Kind(f"from 0 to 2**{bits} - 1", range(1 << bits).__contains__, f"{{0}} >> {bits}", of_all=True)


U32 = Annotated[int, _unsigned(32)]
U64 = Annotated[int, _unsigned(64)]
S32 = Annotated[int, _between(-(1 << 31), U32_MAX, "from -2**31 to 2**32 - 1")]  # often written unsigned
S64 = Annotated[int, _between(-(1 << 63), S64_MAX, "from -2**63 to 2**63 - 1")]
Length = Annotated[int, _between(0, GIB, "from 0 to 2**30")]  # of a buffer of the caller's
Size = Annotated[int, _Kind("1, 2, 4 or 8", (1, 2, 4, 8).__contains__, "{0} not in (1, 2, 4, 8)")]
Alignment = Annotated[int, _Kind("a power of two", lambda n: n > 0 and not n & (n - 1), "{0} <= 0 or {0} & ({0} - 1)")]
Words = Annotated[Sequence[int], _Kind("from 0 to 2**64 - 1 each", range(1 << 64).__contains__, "any({0})")]


class Turns:
    """Whose turn it is on a process that is no kernel: one call's at a time, and every call runs to its end.

    A second thread is refused rather than made to wait. A call that was interrupted midway never gives its turn back,
    so that nothing is asked of the state it left.
    """

    __slots__ = ("give", "take")

    def __init__(self) -> None:
        free = [None]
        self.take: Callable[[], None] = free.pop
        self.give: Callable[[None], None] = free.append


ENDS: Final = (KvmError, HostSignal, NotVisible, InputError)  # how a call that is answered can end, apart from a value


def checked(*protocols: type, in_turns: bool = False) -> Callable[[type[C]], type[C]]:
    """Check the arguments of every call of the protocols that the class has; in_turns: it has ``turns`` to take."""

    def check(kind: type[C]) -> type[C]:
        for protocol in protocols:
            for name, declared in vars(protocol).items():
                if callable(declared) and not name.startswith("_") and name != "shutdown" and hasattr(kind, name):
                    setattr(kind, name, _checked(getattr(kind, name), declared, in_turns))
        return kind

    return check


_CALL: Final = """\
def call(self{declared}):
    try:
        suspicious = {suspicious}
    except TypeError:
        suspicious = True
    if suspicious:
        refuse({name!r}, kinds, [{values}])
"""
_DIRECTLY: Final = "    return method(self{arguments})\n"
_IN_TURN: Final = """\
    turns = self.turns
    try:
        turns.take()
    except IndexError:
        raise CallUnfinished({name!r}) from None
    try:
        answer = method(self{arguments})
    except ENDS:
        turns.give(None)
        raise
    turns.give(None)
    return answer
"""


def _checked(method: Callable[..., Any], declared: Callable[..., Any], in_turns: bool) -> Callable[..., Any]:
    written = getattr(method, "__wrapped__", method)
    code, defaults = written.__code__, written.__defaults__ or ()
    names = code.co_varnames[1 : code.co_argcount]
    hints = get_type_hints(declared, include_extras=True)
    kinds = {name: kind for name in names for kind in getattr(hints.get(name), "__metadata__", ())}
    first_default = len(names) - len(defaults)
    source = (_CALL + (_IN_TURN if in_turns else _DIRECTLY)).format(
        declared="".join(
            f", {name}" + (f"=defaults[{at - first_default}]" if at >= first_default else "")
            for at, name in enumerate(names)
        ),
        arguments="".join(f", {name}" for name in names),
        name=declared.__name__,
        suspicious=" or ".join(_suspicious(kinds)) or "False",
        values=", ".join(kinds),
    )
    world: dict[str, Any] = {
        "method": method,
        "defaults": defaults,
        "kinds": kinds,
        "refuse": _refuse,
        "ENDS": ENDS,
        "CallUnfinished": CallUnfinished,
    }
    exec(source, world)
    call: Callable[..., Any] = wraps(method)(world["call"])
    return call


def _suspicious(kinds: dict[str, _Kind]) -> Iterator[str]:
    """The expressions of which one is true if an argument is not of its kind."""
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name in kinds if kinds[name] is kind]
        for argument in [f"({' | '.join(names)})"] if kind.of_all else names:
            yield kind.suspicious.format(argument)


def _refuse(call: str, kinds: dict[str, _Kind], values: Sequence[Any]) -> None:
    """Say which argument is none that the call can carry, if there is one."""
    for (name, kind), value in zip(kinds.items(), values, strict=True):
        for number in value if isinstance(value, list | tuple) else (value,):
            try:
                allowed = kind.allows(operator.index(number))
            except TypeError:
                raise TypeError(f"{name} of {call} must be an integer, {kind.words}, not {number!r:.40}") from None
            if not allowed:
                shown = f"{number:#x}" if abs(number) < 1 << 128 else "larger than 128 bits"
                raise ValueError(f"{name} of {call} must be {kind.words}; it is {shown}")
