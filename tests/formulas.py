"""z3's formulas as Python functions of plain integers: an evaluation of its own, and fast enough for millions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import z3

__all__ = ("compiled",)

# What each operator is on unsigned numbers of its width; {w} is that of the first operand, {m} the result's mask.
_OPERATORS: dict[int, str] = {
    z3.Z3_OP_BADD: "({0} + {1}) & {m}",
    z3.Z3_OP_BSUB: "({0} - {1}) & {m}",
    z3.Z3_OP_BNEG: "-{0} & {m}",
    z3.Z3_OP_BAND: "{0} & {1}",
    z3.Z3_OP_BOR: "{0} | {1}",
    z3.Z3_OP_BNOT: "~{0} & {m}",
    z3.Z3_OP_ZERO_EXT: "{0}",
    z3.Z3_OP_ULEQ: "{0} <= {1}",
    z3.Z3_OP_UGEQ: "{0} >= {1}",
    z3.Z3_OP_SLEQ: "({0} ^ {s}) <= ({1} ^ {s})",
    z3.Z3_OP_SGEQ: "({0} ^ {s}) >= ({1} ^ {s})",
    z3.Z3_OP_EQ: "{0} == {1}",
    z3.Z3_OP_DISTINCT: "{0} != {1}",
    z3.Z3_OP_NOT: "not {0}",
    z3.Z3_OP_ITE: "({1} if {0} else {2})",
    z3.Z3_OP_TRUE: "True",
    z3.Z3_OP_FALSE: "False",
}
_MANY = {z3.Z3_OP_AND: (" and ", "True"), z3.Z3_OP_OR: (" or ", "False")}


def compiled(formulas: Iterable[Any], variables: Iterable[str]) -> Callable[..., tuple[Any, ...]]:
    """A function of the variables (each as the bits of its bit-vector) that gives the value of each formula."""
    names: dict[int, str] = {}
    lines: list[str] = []
    results = [_emit(formula, names, lines) for formula in formulas]
    body = "\n".join(f"    {line}" for line in [*lines, f"return ({', '.join(results)},)"])
    made: dict[str, Any] = {}
    exec(f"def evaluate({', '.join(variables)}):\n{body}", made)
    function: Callable[..., tuple[Any, ...]] = made["evaluate"]
    return function


def _emit(node: Any, names: dict[int, str], lines: list[str]) -> str:
    """The name that the node's value has, after the lines that compute it."""
    key = node.get_id()
    if key in names:
        return names[key]
    if z3.is_bv_value(node):
        text = str(node.as_long())
    elif z3.is_const(node) and node.decl().kind() == z3.Z3_OP_UNINTERPRETED:
        text = node.decl().name()
    else:
        text = f"t{len(lines)}"
        operands = [_emit(child, names, lines) for child in node.children()]
        text = f"t{len(lines)}"
        lines.append(f"{text} = {_expression(node, operands)}")
    names[key] = text
    return text


def _expression(node: Any, operands: list[str]) -> str:
    kind = node.decl().kind()
    if kind in _MANY:
        word, of_nothing = _MANY[kind]
        return word.join(operands) or of_nothing
    if kind == z3.Z3_OP_CONCAT:
        widths = [child.size() for child in node.children()]
        shifts = [sum(widths[place + 1 :]) for place in range(len(widths))]
        return " | ".join(f"{operand} << {shift}" for operand, shift in zip(operands, shifts, strict=True))
    first = node.arg(0) if node.num_args() else None
    sign = 1 << first.size() - 1 if first is not None and z3.is_bv(first) else 0
    mask = (1 << node.size()) - 1 if z3.is_bv(node) else 0
    return _OPERATORS[kind].format(*operands, m=mask, s=sign)
