"""One reader under atheris: ``python -m fuzz_readers.target FORMAT [libFuzzer's arguments]``."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["guestmem.layout"]):
    from guestmem.layout import HostLimits, LayoutError, cover
    from guestmem.layout.fleet import check_fleet
    from guestmem.layout.readers import (  # noqa: F401  # imported here to be instrumented; picked by name later
        cloud_hypervisor,
        firecracker,
        fleet_jsonl,
        fleet_parquet,
        gdb_dump,
        libvirt,
        own,
        qemu_mtree,
        qemu_trace,
        recording,
        strace,
    )
    from guestmem.layout.recognise import read, read_fleet
from guestmem.layout.check import check

_LONGEST = 2000  # characters of a message


def held(format: str | None, data: bytes) -> None:
    """Read, cover and judge; what cannot be read must be one LayoutError on one line."""
    try:
        fleet = read_fleet("x", data, format)
        if fleet is not None:
            check_fleet(fleet, HostLimits())
        if format != "guestmem-parquet" and fleet is None:
            for layout in read("x", data, format):
                cover(layout)
                check(layout, HostLimits())
    except LayoutError as error:
        said = str(error)
        if not said.isprintable() or len(said) > _LONGEST:
            raise AssertionError(f"the message is no line: {said[:200]!r}") from error


def main() -> None:
    """Fuzz the format named first until libFuzzer's limits end it."""
    format = None if sys.argv[1] == "any" else sys.argv[1]
    atheris.Setup([sys.argv[0], *sys.argv[2:]], lambda data: held(format, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
