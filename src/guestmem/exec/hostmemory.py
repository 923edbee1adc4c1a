"""The program's memory behind slots, shared between the program and the vCPUs.

A program's memory is usually private, and a vCPU must see its stores at once. So the ranges of the slots, and nothing
else, are replaced in the program by shared mappings of one memory file per process, in which an address is its own
offset: neighbours are then one mapping to the kernel. Memory that is shared already is found by its inode.

After a fork, replaced memory is shared with the child instead of being copied.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from guestmem.exec import bpf, peer
from guestmem.exec import syscalls as nr
from guestmem.exec.injection import Stopped
from guestmem.exec.listener import Listener, ProgramCall
from guestmem.exec.standins import number_in
from guestmem.exec.windows import ProgramFile, punch
from guestmem.harness import PAGE_SIZE
from guestmem.model.hostmem import AddressSpace, Vma
from guestmem.model.vm import GuestMemfd
from guestmem.uapi import MAP_FIXED, MAP_NORESERVE, MAP_SHARED
from guestmem.units import align_up

__all__ = ("HostMemory", "PrivateRange")

_USER_SPACE: Final = 1 << 47
_COPY: Final = 1 << 20
_KEPT_FILES: Final = 64


class PrivateRange(NamedTuple):
    """Private memory to be replaced: addresses, protection, and whether absent pages are a file's rather than zero."""

    start: int
    end: int
    prot: int
    of_file: bool


class HostMemory:
    """Which addresses of one process of the program the model knows: ``AddressSpace.vmas`` is the only record."""

    def __init__(self, host: AddressSpace) -> None:
        self._host = host
        self._replaced: ProgramFile | None = None  # stands for private memory; made when first needed
        self._files: dict[int, ProgramFile] = {}  # inode -> a file that the program had mapped before
        self._mapped: dict[
            int, int
        ] = {}  # inode -> our descriptor of a file the program mapped, should it close its own
        self._guest_files: dict[int, GuestMemfd] = {}  # stand-in's number -> file that the program has mapped

    # -- what slots need ---------------------------------------------------------------------------------------------

    def is_known(self, start: int, end: int) -> bool:
        """Whether the model knows what is at all of these addresses."""
        return next(self._host.vmas.gaps(start, end), None) is None

    def learn(self, tid: int, ranges: list[tuple[int, int]]) -> list[PrivateRange]:
        """Take over what is shared already; what of the ranges is private memory, to be replaced."""
        private: list[PrivateRange] = []
        for mapping in peer.mappings(tid):
            for start, end in ranges:
                first, last = max(start, mapping.start), min(end, mapping.end)
                if first < last:
                    for gap_start, gap_end in list(self._host.vmas.gaps(first, last)):
                        self._learn(tid, mapping, gap_start, gap_end, private)
        return private

    def replace(self, call: ProgramCall, listener: Listener, ranges: list[PrivateRange]) -> None:
        """Make private ranges shared by calls of the waiting thread, which then repeats its own call; Gone."""
        file = self._replaced
        if file is None:
            fd = os.memfd_create("guestmem-exec-memory", os.MFD_CLOEXEC)
            os.ftruncate(fd, _USER_SPACE)
            file = self._replaced = ProgramFile(fd, private=True)
        theirs = listener.add(call.id, file.fd, os.O_CLOEXEC, answer=False)
        with Stopped(call) as program:
            for start, end, prot, of_file in ranges:
                punch(file.fd, start, end)
                for first, last in [(start, end)] if of_file else peer.present(call.tid, start, end):
                    for at in range(first, last, _COPY):
                        os.pwrite(file.fd, peer.fetch(call.tid, at, min(_COPY, last - at)), at)
                flags = MAP_SHARED | MAP_FIXED | MAP_NORESERVE | bpf.INJECTED << 32
                if program.call(nr.MMAP, start, end - start, prot, flags, theirs, start) == start:
                    self._host.place(start, end, Vma(file, 0, prot, shared=True))
            program.call(nr.CLOSE, theirs)

    # -- what the program does to its mappings -----------------------------------------------------------------------

    def mapped_guest_memfd(self, number: int, file: GuestMemfd) -> None:
        """The program maps a guest_memfd; where, its mappings will show."""
        self._guest_files[number] = file

    def mapped_file(self, tid: int, fd: int) -> None:
        """The program maps a file shared: keep it, should a slot show it after the program closed its descriptor."""
        path = f"/proc/{tid}/fd/{fd}"
        try:
            inode = Path(path).stat().st_ino
            if inode not in self._mapped and len(self._mapped) < _KEPT_FILES:
                self._mapped[inode] = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return  # closed meanwhile, or not writable for us: then slots cannot show it

    def unmap(self, start: int, length: int) -> None:
        """munmap, or a mapping put over the range."""
        end = start + align_up(length, PAGE_SIZE)
        for first, last, vma in list(self._host.vmas.runs(start, end)):
            self._host.unmap(first, last)
            self._drop(vma, first, last)

    def forget(self, start: int, length: int) -> None:
        """The range moves elsewhere: guests lose it, its pages stay."""
        for first, last, _ in list(self._host.vmas.runs(start, start + align_up(length, PAGE_SIZE))):
            self._host.unmap(first, last)

    def is_replaced(self, start: int, length: int) -> bool:
        """Whether some of the range was private memory that was made shared."""
        end = start + align_up(length, PAGE_SIZE)
        sources = (vma.source for _, _, vma in self._host.vmas.runs(start, end))
        return any(isinstance(source, ProgramFile) and source.private for source in sources)

    def protect(self, start: int, length: int, prot: int) -> None:
        """mprotect."""
        for first, last, vma in list(self._host.vmas.runs(start, start + align_up(length, PAGE_SIZE))):
            self._host.invalidate(first, last)
            self._host.place(first, last, replace(vma, prot=prot))

    def drop_pages(self, start: int, length: int) -> None:
        """MADV_DONTNEED: what was private memory is zero afterwards."""
        for first, last, vma in list(self._host.vmas.runs(start, start + align_up(length, PAGE_SIZE))):
            self._host.dont_need(first, last, shared=vma.shared)
            self._drop(vma, first, last)

    def truncated(self, tid: int, fd: int) -> None:
        """A file of the program is about to change its size: guests lose what they have mapped of it."""
        if not self._files:
            return
        try:
            file = self._files.get(Path(f"/proc/{tid}/fd/{fd}").stat().st_ino)
        except OSError:
            return
        if file is not None:
            self._host.file_changed(file, 0, _USER_SPACE)

    def learn_guest_mappings(self, tid: int, start: int, length: int) -> bool:
        """Take over mappings of guest_memfds in the range, for advice on them; whether there are any."""
        end = start + align_up(length, PAGE_SIZE)
        if self._guest_files:
            for mapping in peer.mappings(tid):
                first, last = max(start, mapping.start), min(end, mapping.end)
                if first < last and number_in(mapping.path) in self._guest_files:
                    for gap_start, gap_end in list(self._host.vmas.gaps(first, last)):
                        self._learn(tid, mapping, gap_start, gap_end, [])
        return any(isinstance(vma.source, GuestMemfd) for _, _, vma in self._host.vmas.runs(start, end))

    # -- private -----------------------------------------------------------------------------------------------------

    def _learn(self, tid: int, mapping: peer.ProgramMapping, start: int, end: int, private: list[PrivateRange]) -> None:
        if not mapping.shared:
            private.append(PrivateRange(start, end, mapping.prot, mapping.inode != 0))
            return
        source = self._source(tid, mapping)
        if source is not None:
            delta = mapping.start - mapping.offset
            self._host.place(start, end, Vma(source, delta, mapping.prot, shared=True))

    def _source(self, tid: int, mapping: peer.ProgramMapping) -> ProgramFile | GuestMemfd | None:
        number = number_in(mapping.path)
        if number is not None:
            return self._guest_files.get(number)
        if self._replaced is not None and mapping.inode == os.fstat(self._replaced.fd).st_ino:
            return self._replaced
        file = self._files.get(mapping.inode)
        if file is None:
            fd = self._mapped.pop(mapping.inode, None)
            fd = _descriptor_of(tid, mapping.inode) if fd is None else fd
            if fd is None:
                return None
            file = self._files[mapping.inode] = ProgramFile(fd, private=False)
        return file

    @staticmethod
    def _drop(vma: Vma, start: int, end: int) -> None:
        if isinstance(vma.source, ProgramFile) and vma.source.private:
            punch(vma.source.fd, start - vma.delta, end - vma.delta)


def _descriptor_of(tid: int, inode: int) -> int | None:
    """Open the file with that inode through a descriptor of the program's."""
    for path in Path(f"/proc/{tid}/fd").iterdir():
        try:
            if path.stat().st_ino == inode:
                return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
    return None
