"""Fleets as Parquet (extra ``traces``): one slot a row.

Columns ``vm`` (name or number), ``gpa`` and ``size``; where known ``hva`` (null: not known), ``flags``, ``backing``,
``page_size``, ``guest_memfd`` (not 0: all pages from a file of its own), ``address_space``. Other columns are ignored.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from guestmem.errors import BackendUnavailable
from guestmem.layout.error import LayoutError, printable
from guestmem.layout.fleet import Fleet
from guestmem.layout.vector import Columns
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import KIB

__all__ = ("read",)

U64s: TypeAlias = npt.NDArray[np.uint64]
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_COLUMNS = ("vm", "gpa", "size", "hva", "flags", "backing", "page_size", "guest_memfd", "address_space")
_MAX_ROWS = 1 << 25  # a few GB once they are columns; a file of zeros may say more in a kilobyte
_TRANSPARENT = ["anonymous", "shmem", "unknown", ""]


def read(source: str, data: bytes) -> Fleet:
    """The fleet; BackendUnavailable without pyarrow, LayoutError for a table that is none."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BackendUnavailable(f"{source}: needs the library pyarrow: pip install 'guestmem[traces]'") from None
    try:
        table = _Table(source, _read(source, parquet.ParquetFile(io.BytesIO(data))))
        names, index = np.unique(table.texts("vm"), return_inverse=True)
        columns = Columns(
            index.astype(np.int64),
            table.numbers("address_space", 0).astype(np.int64),
            table.numbers("gpa"),
            table.numbers("size"),
            table.numbers("hva", 0),
            table.known("hva"),
            table.numbers("page_size", 4 * KIB),
            np.isin(table.texts("backing", "unknown"), _TRANSPARENT),
            table.numbers("flags", 0) & np.uint64(KVM_MEM_LOG_DIRTY_PAGES) != 0,
            table.numbers("guest_memfd", 0) != 0,
        )
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise LayoutError(source, f"needed a Parquet table of slots ({printable(error, 120)})") from None
    return Fleet(source, "guestmem-parquet", [str(name) for name in names], columns)


def _read(source: str, file: Any) -> Any:
    """The columns that mean something, of a file that says it has no more rows than fit in memory."""
    if file.metadata.num_rows > _MAX_ROWS:
        raise LayoutError(source, f"at most {_MAX_ROWS} rows are read", field="rows", value=file.metadata.num_rows)
    return file.read(columns=[name for name in file.schema_arrow.names if name in _COLUMNS])


@dataclass(frozen=True, slots=True)
class _Table:
    """A table whose columns are asked for by name and kind."""

    source: str
    table: Any

    def numbers(self, name: str, default: int | None = None) -> U64s:
        """A column of unsigned 64-bit numbers; nulls and a missing column are the default."""
        column = self._column(name, default)
        if column is None:
            return np.full(len(self.table), default, np.uint64)
        if str(column.type) not in _INTEGERS:
            raise LayoutError(self.source, "needed integers", field=f"column {name}", value=column.type)
        values: npt.NDArray[Any] = column.fill_null(default or 0).to_numpy()
        if bool((values < 0).any()):
            raise LayoutError(self.source, "needed numbers from 0 to 2**64 - 1", field=f"column {name}")
        return values.astype(np.uint64)

    def texts(self, name: str, default: str | None = None) -> npt.NDArray[np.str_]:
        """A column of names; numbers count as names."""
        column = self._column(name, default)
        if column is None:
            return np.full(len(self.table), default)
        return np.array(column.cast("string").fill_null(default or "").to_numpy(), np.str_)

    def known(self, name: str) -> npt.NDArray[np.bool_]:
        """Where a column has a value."""
        column = self._column(name, 0)
        if column is None:
            return np.zeros(len(self.table), np.bool_)
        return np.array(column.is_valid().to_numpy(), np.bool_)

    def _column(self, name: str, default: object) -> Any:
        if name in self.table.column_names:
            return self.table.column(name)
        if default is None:
            raise LayoutError(self.source, "the table lacks it", field=f"column {name}")
        return None
