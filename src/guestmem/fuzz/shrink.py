"""Make a differing sequence small: leave out what it can do without, then let hypothesis make numbers simple.

A candidate is the sequence with some operations left out and some arguments replaced, and every such choice is one draw
whose simplest value is the simplest sequence. So whatever hypothesis shrinks to is smaller, and since most choices of
the first try keep everything, it starts from the difference that was found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from guestmem.errors import BackendUnavailable
from guestmem.recordings.ioctls import RunTouch
from guestmem.recordings.operation import Field, HostAddress, Operation, marked

if TYPE_CHECKING:
    from hypothesis.strategies import DrawFn

__all__ = ("smallest",)

Operations = tuple[Operation, ...]
_KEEP = 1 << 20  # draws below it change something; of the numbers up to it hypothesis favours few
_SIMPLE = (0, 1, 0x1000, 0x2000, 0x200000)
_FIXED = frozenset(("type", "flags", "id", "i", "boot_gpa", "mode", "prot", "advice"))


def smallest(operations: Sequence[Operation], differs: Callable[[Operations], bool], limit_s: float) -> Operations:
    """The smallest sequence found within limit_s seconds that still differs; the given one differs.

    BackendUnavailable if hypothesis is not installed.
    """
    try:
        import hypothesis
        from hypothesis import strategies as st
    except ImportError:
        raise BackendUnavailable("shrinking needs hypothesis: pip install 'guestmem[fuzz]'") from None

    end = time.monotonic() + limit_s
    best = tuple(operations)

    def interesting(candidate: Operations) -> bool:
        nonlocal best
        if not candidate or time.monotonic() > end or not differs(candidate):
            return False
        if _size(candidate) < _size(best):
            best = candidate
        return True

    _leave_out(best, interesting)

    @st.composite
    def candidates(draw: DrawFn) -> Operations:
        kept = (each for each in best_at_start if draw(st.integers(0, _KEEP)) > 0)
        return tuple(_simplified(each, lambda values: _drawn(draw, st, values)) for each in _closed(kept))

    settings = hypothesis.settings(
        max_examples=400,
        database=None,
        deadline=None,
        derandomize=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )
    while time.monotonic() < end:
        best_at_start, before = best, _size(best)
        try:
            hypothesis.find(candidates(), interesting, settings=settings, random=Random(0))
        except (hypothesis.errors.NoSuchExample, hypothesis.errors.Flaky):
            break  # nothing smaller, or a candidate that differs at times only: what was found so far is what there is
        if _size(best) >= before:
            break
    return best


def _leave_out(operations: Operations, interesting: Callable[[Operations], bool]) -> None:
    """Try without longer and then shorter stretches, from the end on: what hypothesis would take hours to find out."""
    stretch = len(operations)
    while stretch := stretch // 2:
        start = len(operations) - stretch
        while start >= 0:
            candidate = tuple(_closed(operations[:start] + operations[start + stretch :]))
            if interesting(candidate):
                operations = candidate
            start = min(start - stretch, len(operations) - stretch)


def _drawn(draw: DrawFn, st: Any, values: Sequence[Any]) -> Any:
    """The last of the values mostly, simpler ones the further hypothesis shrinks."""
    return values[min(draw(st.integers(0, _KEEP)), len(values) - 1)]


def _closed(operations: Iterable[Operation]) -> Iterable[Operation]:
    """Without those that name what no operation left makes."""
    made: set[object] = {"kvm", ""}
    for operation in operations:
        if all(name in made for name in _names(operation, Field.USES) if isinstance(name, str)):
            yield operation
            made.update(_names(operation, Field.MAKES, Field.MAKES_MAPPING))


def _names(operation: msgspec.Struct, *marks: Field) -> Iterable[object]:
    """The handles that an operation uses or makes, also in what it is made of."""
    yield from (getattr(operation, name) for name in marked(type(operation), *marks))
    where = getattr(operation, "userspace_addr", None)
    if isinstance(where, HostAddress):
        yield from _names(where, *marks)


def _simplified(operation: Operation, drawn: Callable[[Sequence[Any]], Any]) -> Operation:
    """The operation with simpler numbers, or fewer touches, as far as was drawn."""
    if isinstance(operation, RunTouch):
        touches = [each for each in operation.touches if drawn((False, True))] or operation.touches[-1:]
        return msgspec.structs.replace(operation, touches=touches)
    if _is_boot(operation):
        return operation
    changes = {}
    for field in operation.__struct_fields__:
        value = getattr(operation, field)
        if type(value) is int and field not in _FIXED:
            simple = [each for each in _SIMPLE if each < abs(value)]
            if simple:
                changes[field] = drawn((*simple, value))
    return msgspec.structs.replace(operation, **changes)


def _is_boot(operation: Operation) -> bool:
    """The slot of the guest's own code has to be what it is."""
    where = getattr(operation, "userspace_addr", None)
    return isinstance(where, HostAddress) and where.buf.startswith("boot:")


def _size(operations: Sequence[Operation]) -> tuple[int, int, int]:
    """Fewer operations first, then fewer touches, then smaller numbers."""
    touches = sum(len(each.touches) for each in operations if isinstance(each, RunTouch))
    return len(operations), touches, len(msgspec.json.encode(operations))
