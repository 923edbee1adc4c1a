"""--record: the operations of every process of the program, as one recording.

They are kept in files without a name until the program has ended, so that memory stays bounded and the recording
appears whole.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

from guestmem.model.profiles import Profile
from guestmem.recordings.operation import Operation
from guestmem.recordings.vocabulary import Begin, Line
from guestmem.recordings.writer import writing
from guestmem.rules import DEFAULT, Rule

__all__ = ("Recording", "Spool")


class Spool:
    """The operations of one process, in order."""

    def __init__(self, begin: Begin) -> None:
        self.begin = begin
        self.count = 0
        self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (open until the program has ended)
        self._encoder = msgspec.json.Encoder()

    def __call__(self, operation: Operation, check: str, reason: str) -> None:
        """One operation that was run."""
        self._file.write(self._encoder.encode(operation) + b"\n")
        self.count += 1

    def operations(self) -> Iterator[Operation]:
        """All of them, once; the spool is empty and closed afterwards."""
        decoder: Any = msgspec.json.Decoder(Line)
        with self._file as file:
            file.seek(0)
            for line in file:
                yield decoder.decode(line)


class Recording:
    """What will be one file: a sequence for each process that used /dev/kvm."""

    def __init__(self, path: Path, title: str, profile: Profile, rule: Rule, *, in_place: bool | None = None) -> None:
        self.path = path
        self._title, self._profile, self._rule, self._in_place = title, profile, rule, in_place
        self._spools: list[Spool] = []

    def spool(self, process: int) -> Spool:
        """Where the operations of a process go."""
        begin = Begin(
            seq=f"process-{len(self._spools)}",
            kind="exec",
            profile=self._profile.name,
            title=self._title,
            rule=self._rule.name if self._rule is not DEFAULT else "",
            in_place=self._in_place,
        )
        spool = Spool(begin)
        self._spools.append(spool)
        return spool

    def write(self) -> tuple[int, int]:
        """Write the file; how many processes and operations it has. OSError."""
        with writing(self.path) as write:
            for spool in self._spools:
                write(spool.begin, spool.operations())
        return len(self._spools), sum(spool.count for spool in self._spools)
