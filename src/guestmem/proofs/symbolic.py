"""Integers that stand for every value at once: what lets the rules' own Python code be read as a formula.

A ``SymInt`` is an exact Python integer, not a machine word: a signed vector of WIDTH bits together with bounds that
prove it never wraps (a bug says so at once). Where Python needs a plain truth value, the value asks the explorer
(``paths``), which runs the code again for the other answer. A ``OneOf`` is one of a few known values, a page size or
an order: code that looks at one is run once for each. Leaves out multiplication and division by other than powers of
two, which no rule needs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import z3

from guestmem.proofs.paths import decide, summed
from guestmem.units import is_power_of_two

__all__ = ("NotTranslated", "WIDTH", "OneOf", "Formula", "SymBool", "SymInt", "Term", "constant", "pages", "u64")

Term: TypeAlias = Any  # z3.BitVecRef of WIDTH bits; z3 has no types of its own
Formula: TypeAlias = Any  # z3.BoolRef

WIDTH = 72  # sums of a few 64-bit values, signed
_U64_BITS = 64


class NotTranslated(TypeError):
    """A rule's code does what has no formula here."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: the prover follows + - & | ~ << >>, comparisons, bit_length, and % of a page size")


@dataclass(frozen=True, slots=True, eq=False)
class SymBool:
    """A truth value that may still be either."""

    term: Formula

    def __bool__(self) -> bool:
        return decide(self.term)


@dataclass(frozen=True, slots=True, eq=False)
class SymInt:
    """Every integer of [low, high] that the term can be."""

    term: Term
    low: int
    high: int

    def __post_init__(self) -> None:
        limit = 1 << (WIDTH - 1)
        assert -limit <= self.low <= self.high < limit, f"bug in guestmem: [{self.low:#x}, {self.high:#x}] may wrap"

    def __add__(self, other: object) -> SymInt:
        o = constant(other)
        return _noted(SymInt(self.term + o.term, self.low + o.low, self.high + o.high))

    __radd__ = __add__

    def __sub__(self, other: object) -> SymInt:
        o = constant(other)
        return SymInt(self.term - o.term, self.low - o.high, self.high - o.low)

    def __rsub__(self, other: object) -> SymInt:
        return constant(other) - self

    def __neg__(self) -> SymInt:
        return SymInt(-self.term, -self.high, -self.low)

    def __invert__(self) -> SymInt:
        return SymInt(~self.term, ~self.high, ~self.low)

    def __and__(self, other: object) -> SymInt:
        o = constant(other)
        highs = [value.high for value in (self, o) if value.low >= 0]
        bound = 1 << max(abs(v).bit_length() for v in (self.low, self.high, o.low, o.high))
        low, high = (0, min(highs)) if highs else (-bound, bound)
        return SymInt(self.term & o.term, low, high)

    __rand__ = __and__

    def __or__(self, other: object) -> SymInt:
        o = constant(other)
        if self.low < 0 or o.low < 0:
            raise NotTranslated("| of a number that may be negative")
        return SymInt(self.term | o.term, 0, (1 << max(self.high, o.high).bit_length()) - 1)

    __ror__ = __or__

    def __mod__(self, size: object) -> SymInt:
        size = _plain(size)
        if not is_power_of_two(size):
            raise NotTranslated(f"modulo {size}")
        return self & (size - 1)

    def __lshift__(self, count: object) -> SymInt:
        n = _plain(count)
        return _noted(SymInt(self.term << n, self.low << n, self.high << n))

    def __rshift__(self, count: object) -> SymInt:
        n = _plain(count)
        return SymInt(self.term >> n, self.low >> n, self.high >> n)

    def bit_length(self) -> SymInt:
        """As int.bit_length; of a number that is not negative."""
        if self.low < 0:
            raise NotTranslated("bit_length of a number that may be negative")
        bits = self.high.bit_length()
        term = z3.BitVecVal(0, WIDTH)
        for bit in range(bits):
            term = z3.If(self.term >= 1 << bit, z3.BitVecVal(bit + 1, WIDTH), term)
        return SymInt(term, 0, bits)

    def __lt__(self, other: object) -> SymBool:
        return SymBool(self.term < constant(other).term)

    def __le__(self, other: object) -> SymBool:
        return SymBool(self.term <= constant(other).term)

    def __gt__(self, other: object) -> SymBool:
        return SymBool(self.term > constant(other).term)

    def __ge__(self, other: object) -> SymBool:
        return SymBool(self.term >= constant(other).term)

    def __eq__(self, other: object) -> SymBool:  # type: ignore[override]  # a comparison of symbols has no answer yet
        return SymBool(self.term == constant(other).term)

    def __ne__(self, other: object) -> SymBool:  # type: ignore[override]  # as __eq__
        return SymBool(self.term != constant(other).term)

    __hash__ = None  # type: ignore[assignment]  # equal symbols are not known to be equal

    def __bool__(self) -> bool:
        return decide(self.term != 0)

    def __format__(self, spec: str) -> str:
        return "any"  # only messages are formatted, and a formula has none


def _apply(operation: Callable[[Any, Any], Any]) -> Callable[[OneOf, Any], Any]:
    return lambda self, other: operation(self.concrete(), other)


def _reflect(operation: Callable[[Any, Any], Any]) -> Callable[[OneOf, Any], Any]:
    return lambda self, other: operation(other, self.concrete())


@dataclass(frozen=True, slots=True, eq=False)
class OneOf:
    """One of a few values. Code that looks at it gets one, and is run again for the others.

    codes are what the term is for each value: an order is written as the page size it stands for.
    """

    term: Term
    values: tuple[int, ...]
    codes: tuple[int, ...]

    @property
    def domain(self) -> Formula:
        """It is one of the values."""
        return z3.Or([self.term == code for code in self.codes])

    def concrete(self) -> int:
        """The value on this path."""
        for value, code in zip(self.values[:-1], self.codes[:-1], strict=True):
            if decide(self.term == code):
                return value
        return self.values[-1]

    def __bool__(self) -> bool:
        return bool(self.concrete())

    def __index__(self) -> int:
        return self.concrete()

    def __neg__(self) -> int:
        return -self.concrete()

    def __format__(self, spec: str) -> str:
        return format(self.concrete(), spec)

    __add__, __radd__ = _apply(operator.add), _reflect(operator.add)
    __sub__, __rsub__ = _apply(operator.sub), _reflect(operator.sub)
    __and__, __rand__ = _apply(operator.and_), _reflect(operator.and_)
    __mod__, __rmod__ = _apply(operator.mod), _reflect(operator.mod)
    __floordiv__ = _apply(operator.floordiv)
    __lshift__, __rlshift__ = _apply(operator.lshift), _reflect(operator.lshift)
    __rshift__, __rrshift__ = _apply(operator.rshift), _reflect(operator.rshift)
    __lt__, __le__, __gt__, __ge__ = (_apply(op) for op in (operator.lt, operator.le, operator.gt, operator.ge))
    __eq__, __ne__ = _apply(operator.eq), _apply(operator.ne)
    __hash__ = None  # type: ignore[assignment]  # as Python itself has it for a class with __eq__


def constant(value: object) -> SymInt:
    """A known integer as a symbol; symbols pass."""
    if isinstance(value, SymInt):
        return value
    number = _plain(value)
    return SymInt(z3.BitVecVal(number, WIDTH), number, number)


def u64(name: str) -> SymInt:
    """Every value of a u64."""
    return SymInt(z3.ZeroExt(WIDTH - _U64_BITS, z3.BitVec(name, _U64_BITS)), 0, (1 << _U64_BITS) - 1)


def pages(name: str, page_size: int) -> SymInt:
    """Every multiple of the page size that fits a u64."""
    shift = page_size.bit_length() - 1
    term = z3.Concat(z3.BitVec(name, _U64_BITS - shift), z3.BitVecVal(0, shift))
    return SymInt(z3.ZeroExt(WIDTH - _U64_BITS, term), 0, (1 << _U64_BITS) - page_size)


def _plain(value: object) -> int:
    if isinstance(value, OneOf):
        return value.concrete()
    if not isinstance(value, int):
        raise NotTranslated("an unknown number where one that is known is needed, as in % and shifts")
    return value


def _noted(result: SymInt) -> SymInt:
    summed(result.term)
    return result
