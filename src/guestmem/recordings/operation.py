"""What an operation of a recording is: a line with arguments and, once it was run, with what was observed.

One class declares one operation, in ``ioctls`` and ``calls``: its fields, which of them are observed, what it makes,
how it is run, and what a real kernel must not be asked. Everything else reads that declaration.
"""

from __future__ import annotations

from enum import StrEnum, auto
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

if TYPE_CHECKING:
    from guestmem.recordings.handles import Handles
    from guestmem.recordings.limits import Limits

__all__ = ("Field", "HostAddress", "Operation", "begun", "marked", "unrun")

T = TypeVar("T")
AnyOperation = TypeVar("AnyOperation", bound="Operation")


class Field(StrEnum):
    """What a field of an operation is, where it is no plain argument."""

    OBSERVED = auto()  # part of the outcome: written by a run, compared
    REMARK = auto()  # what another recorder noted about its outcome: neither written nor compared
    USES = auto()  # the name of something that an earlier operation made
    MAKES = auto()  # the name of what this operation makes: a descriptor
    MAKES_MAPPING = auto()  # the same, a mapping


Observed = Annotated[T, Field.OBSERVED]
Remark = Annotated[T, Field.REMARK]

U64 = Annotated[int, msgspec.Meta(ge=0)]  # the upper bound is the reader's: msgspec cannot state it
U32 = Annotated[int, msgspec.Meta(ge=0, le=(1 << 32) - 1)]
S64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
S32 = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 32) - 1)]  # recorders write some as unsigned
Length = Annotated[int, msgspec.Meta(ge=0, le=1 << 30)]  # of a data buffer
Result = int | str | None
Handle = Annotated[S64 | str, Field.USES]  # a descriptor by name; a plain number stands for itself
MappingName = Annotated[str, Field.USES]
NewHandle = Annotated[str, Field.MAKES]
NewMapping = Annotated[str, Field.MAKES_MAPPING]


class HostAddress(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A userspace_addr: an offset into a buffer or a mapping, or a number."""

    buf: str = ""
    map: MappingName = ""
    off: U64 = 0
    abs: U64 | None = None


class Operation(msgspec.Struct, tag_field="op", forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """What every operation carries. ``result``: return value or handle; ``errno``: a name, null for success.

    A line whose ``errno`` is absent was never run: there is nothing to compare with.
    """

    seq: str
    i: int
    result: Observed[Result] = None
    errno: Observed[str | UnsetType | None] = UNSET

    def run(self, here: Handles) -> None:
        """Make the call, and write what is observed into this operation; result is 0 before.

        KvmError if it is refused; NotThere for a mapping that does not exist here, UnknownHandle for what nothing made;
        NotVisible if the backend cannot show or do it; UnexpectedExit.
        """
        raise NotImplementedError

    def limit(self, limits: Limits) -> str | None:
        """Why a real kernel must not be asked for it; None if it may be, and then it is put on the account."""
        return None

    @classmethod
    def name(cls) -> str:
        """What ``op`` is on its lines."""
        return str(cls.__struct_config__.tag)

    @property
    def was_run(self) -> bool:
        """Whether it has an outcome."""
        return self.errno is not UNSET

    def arguments(self, touch: int | None = None) -> dict[str, Any]:
        """The arguments by name, or those of one guest touch."""
        left_out = {"op", "seq", "i", *marked(type(self), Field.OBSERVED, Field.REMARK)}
        return {name: value for name, value in msgspec.to_builtins(self).items() if name not in left_out}

    # An outcome can differ in parts: ``touch`` is the index of a guest touch, None the operation as a whole.

    @property
    def parts(self) -> int:
        """How many touches have an outcome of their own."""
        return 0

    def ended(self, touch: int | None = None) -> str:
        """How it ended, in a word or two: "ok", an errno, a signal, an exit of the guest."""
        return str(self.errno or "ok")

    def observed(self, touch: int | None = None) -> Any:
        """What was observed, as plain values."""
        values = {name: getattr(self, name) for name in marked(type(self), Field.OBSERVED)}
        return {
            "result": self.result,
            "errno": self.errno,
            **{name: value for name, value in values.items() if value is not None or self.errno is None},
        }

    def agrees(self, other: Operation, touch: int | None = None) -> bool:
        """Whether the same was observed of the same operation."""
        return all(getattr(self, name) == getattr(other, name) for name in marked(type(self), Field.OBSERVED))


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[tuple[str, Any, frozenset[Field]], ...]:
    """Name, default and marks of each field. Asking msgspec takes longer than running an operation."""
    fields = ((field, getattr(field.type, "__metadata__", ())) for field in msgspec.structs.fields(kind))
    return tuple(
        (field.name, field.default, frozenset(mark for mark in metadata if isinstance(mark, Field)))
        for field, metadata in fields
    )


@cache
def marked(kind: type[msgspec.Struct], *marks: Field) -> tuple[str, ...]:
    """The names of the fields with any of these marks.

    >>> marked(HostAddress, Field.USES)
    ('map',)
    """
    return tuple(name for name, _, of_field in _fields(kind) if not of_field.isdisjoint(marks))


@cache
def _outcome(kind: type[Operation], **values: Any) -> dict[str, Any]:
    """The fields of an outcome as they are before there is one, but for some values."""
    names = marked(kind, Field.OBSERVED, Field.REMARK)
    return {name: default for name, default, _ in _fields(kind) if name in names} | values


def unrun(operation: AnyOperation) -> AnyOperation:
    """A copy of the operation without any outcome."""
    return msgspec.structs.replace(operation, **_outcome(type(operation)))


def begun(operation: AnyOperation) -> AnyOperation:
    """A copy of the operation to run: a success, unless something else is found."""
    return msgspec.structs.replace(operation, **success(type(operation)))


def success(kind: type[Operation]) -> dict[str, Any]:
    """The fields of an outcome as a success begins."""
    return _outcome(kind, result=0, errno=None)
