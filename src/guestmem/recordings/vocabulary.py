"""All that a line of a recording can be, as typed values. What the types do not know is refused.

``Line`` is made of the operations that ``ioctls`` and ``calls`` declare; nothing else lists them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Union

import msgspec

from guestmem.recordings import calls, ioctls
from guestmem.recordings.operation import Operation

__all__ = ("OPERATIONS", "Begin", "Line")


class Begin(msgspec.Struct, tag_field="op", tag="begin", forbid_unknown_fields=True):
    """Opens a sequence: one fresh process. guestmem's own recordings may name machine, geometry, rule and backing."""

    seq: str
    i: int = -1
    kind: str = ""
    profile: str = ""
    seed: int | None = None
    title: str = ""
    kernel: str = ""
    geometry: str = ""
    rule: str = ""
    vm_types: list[Literal[0, 1]] = []
    gpa_bits: Literal[0] | Annotated[int, msgspec.Meta(ge=32, le=52)] = 0
    smm: bool | None = None
    two_dimensional_paging: bool | None = None
    in_place: bool | None = None
    pools: dict[
        str, Annotated[int, msgspec.Meta(ge=0, le=1 << 52)]
    ] = {}  # page size, as "2M", to how many the host has


OPERATIONS: Final[tuple[type[Operation], ...]] = tuple(
    kind
    for module in (calls, ioctls)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, Operation) and not kind.__subclasses__()
)
Line: Final[Any] = Union[(Begin, *OPERATIONS)]  # for msgspec; a checker of types is served with Begin | Operation
