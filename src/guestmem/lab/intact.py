"""Whether a kernel in the cache is the one that was built: a full disk or an interrupted copy truncates files."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

__all__ = ("damage", "digest_of", "is_whole_elf")

_HEADER = struct.Struct("<4sBB10xHHIQQQIHHHHHH")  # Elf64_Ehdr
_SECTION = struct.Struct("<IIQQQQIIQQ")  # Elf64_Shdr
_64_BIT, _LITTLE_ENDIAN = 2, 1
_SHT_NOBITS = 8


def damage(image: Path, size: int, digest: str) -> str:
    """What is wrong with the file, in words; "" if it has this size and SHA-256. digest "": if it is a whole ELF file.

    Records of earlier versions have no digest.
    """
    try:
        found = image.stat().st_size
        if not digest:
            return "" if is_whole_elf(image) else f"{image.name} is not a whole ELF file"
        if found != size:
            return f"{image.name} has {found:,} bytes of {size:,}"
        return "" if digest_of(image) == digest else f"{image.name} has other contents than when it was built"
    except OSError as error:
        return f"{image.name}: {error.strerror}"


def digest_of(path: Path) -> str:
    """The SHA-256 of a file's contents; OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_whole_elf(path: Path) -> bool:
    """Whether it is a 64-bit ELF file that has all its sections; their headers are at its end. OSError."""
    end = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            return False
        magic, bits, order, *_, at, _, _, _, _, size, count, _ = _HEADER.unpack(head)
        if (magic, bits, order, size) != (b"\x7fELF", _64_BIT, _LITTLE_ENDIAN, _SECTION.size) or not count:
            return False
        file.seek(at)
        table = file.read(count * size)
    if len(table) < count * size:
        return False
    sections = _SECTION.iter_unpack(table)
    return all(kind == _SHT_NOBITS or offset + length <= end for _, kind, _, _, offset, length, *_ in sections)
