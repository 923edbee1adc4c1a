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
from guestmem.layout.budget import MAX_NAME, MAX_ROWS, within
from guestmem.layout.error import LayoutError, printable
from guestmem.layout.fleet import Fleet
from guestmem.layout.vector import Columns
from guestmem.uapi import KVM_MEM_LOG_DIRTY_PAGES
from guestmem.units import KIB, MIB, U64_MAX, format_size

__all__ = ("read",)

U64s: TypeAlias = npt.NDArray[np.uint64]
_INTEGERS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
_COLUMNS = ("vm", "gpa", "size", "hva", "flags", "backing", "page_size", "guest_memfd", "address_space")
_TEXTS = ("vm", "backing")
_MAX_COLUMN = 48 * MIB  # unpacked, of one row group
_TRANSPARENT = ["anonymous", "shmem", "unknown", ""]


def read(source: str, data: bytes) -> Fleet:
    """The fleet; BackendUnavailable without pyarrow, LayoutError for a table that is none."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise BackendUnavailable(f"{source}: needs the library pyarrow: pip install 'guestmem[traces]'") from None
    try:
        texts = _checked(source, parquet.ParquetFile(io.BytesIO(data)))
        file = parquet.ParquetFile(io.BytesIO(data), read_dictionary=texts)
        wanted = [name for name in file.schema_arrow.names if name in _COLUMNS]
        table = _Table(source, file.read(columns=wanted, use_threads=False))
        names, index = table.texts("vm")
        backings, backing = table.texts("backing", "unknown")
        columns = Columns(
            index,
            table.numbers("address_space", 0, limit=0xFFFF).astype(np.int64),
            table.numbers("gpa"),
            table.numbers("size"),
            table.numbers("hva", 0),
            table.known("hva"),
            table.page_sizes(),
            np.isin(backings, _TRANSPARENT)[backing],
            table.numbers("flags", 0) & np.uint64(KVM_MEM_LOG_DIRTY_PAGES) != 0,
            table.numbers("guest_memfd", 0) != 0,
        )
    except (pyarrow.ArrowException, OSError, OverflowError, UnicodeDecodeError) as error:
        raise LayoutError(source, f"needed a Parquet table of slots ({printable(error, 120)})") from None
    return Fleet(source, "guestmem-parquet", names, columns)


def _checked(source: str, file: Any) -> list[str]:
    """Refuse a file that says it does not fit, since pyarrow unpacks a column at once; its columns of texts."""
    metadata, schema = file.metadata, file.schema_arrow
    within(source, metadata.num_rows, MAX_ROWS, "rows")
    texts = []
    for name in _COLUMNS:
        count = schema.names.count(name)
        if count > 1:
            raise LayoutError(source, "the table has it more than once", field=f"column {name}")
        if count:
            kind = str(schema.field(name).type)
            if kind not in _INTEGERS and (name not in _TEXTS or "string" not in kind):
                needed = "needed names or integers" if name in _TEXTS else "needed integers"
                raise LayoutError(source, needed, field=f"column {name}", value=kind)
            if kind not in _INTEGERS:
                texts.append(name)
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema in _COLUMNS and column.total_uncompressed_size > _MAX_COLUMN:
                needed = f"at most {format_size(_MAX_COLUMN)} are read of a column"
                raise LayoutError(source, needed, field=f"column {column.path_in_schema}")
    return texts


@dataclass(frozen=True, slots=True)
class _Table:
    """A table whose columns are asked for by name and kind."""

    source: str
    table: Any

    def numbers(self, name: str, default: int | None = None, limit: int = U64_MAX) -> U64s:
        """A column of unsigned 64-bit numbers; nulls and a missing column are the default."""
        column = self._column(name, default)
        if column is None:
            return np.full(len(self.table), default, np.uint64)
        values: npt.NDArray[Any] = column.fill_null(default or 0).to_numpy()
        if bool((values < 0).any()) or bool((values > limit).any()):
            raise LayoutError(self.source, f"needed numbers from 0 to {limit:#x}", field=f"column {name}")
        return values.astype(np.uint64)

    def page_sizes(self) -> U64s:
        """The column of page sizes: powers of two, as in a layout."""
        values = self.numbers("page_size", 4 * KIB)
        wrong = (values == 0) | (values & (values - np.uint64(1)) != 0)
        if bool(wrong.any()):
            value = int(values[wrong.argmax()])
            raise LayoutError(self.source, "needed a power of two", field="column page_size", value=value)
        return values

    def texts(self, name: str, default: str | None = None) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The different names in a column, and for each row which it is; numbers count as names.

        As a dictionary from the start: an array of texts would be as wide as the longest, times all rows.
        """
        column = self._column(name, default)
        if column is None:
            return [default or ""], np.zeros(len(self.table), np.int64)
        column = column.combine_chunks().dictionary_encode()
        within(self.source, len(column.dictionary), MAX_ROWS, f"names in column {name}")
        found = ["" if value is None else str(value) for value in [*column.dictionary.to_pylist(), default]]
        if max(map(len, found)) > MAX_NAME:
            needed = f"no name is longer than {MAX_NAME} characters"
            raise LayoutError(self.source, needed, field=f"column {name}", value=max(found, key=len))
        indices = column.indices.fill_null(len(found) - 1).to_numpy()
        used = sorted({found[at] for at in np.unique(indices).tolist()})
        place = {text: at for at, text in enumerate(used)}
        return used, np.array([place.get(text, 0) for text in found], np.int64)[indices]

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
