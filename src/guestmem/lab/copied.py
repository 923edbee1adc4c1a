"""A copy of a source tree that was built in, so that it can be built elsewhere: the kernel's make refuses it as it is.

What git knows, or does not ignore, is the source; without git it is all but what a build leaves, and ``make mrproper``
removes the rest from the copy. The tree itself is only read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

__all__ = ("is_clean", "update")

# What the kernel's Makefile looks for (target outputmakefile), before it says "please run make mrproper".
_BUILT: Final = (".config", "include/config", "arch/x86/include/generated")
_PRODUCTS: Final = (".o", ".a", ".ko", ".cmd", ".mod", ".order", ".symvers")


def is_clean(tree: Path) -> bool:
    """Whether the kernel's make builds the tree elsewhere."""
    return not any((tree / name).exists() for name in _BUILT)


def update(tree: Path, copy: Path) -> None:
    """Make copy what the source in tree is now; what did not change is left, with its time. OSError."""
    wanted = set(_of_git(tree) or _of_tree(tree))
    for name in wanted:
        source, target = tree / name, copy / name
        if not _is_same(source, target):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    for name in set(_of_tree(copy)) - wanted:
        (copy / name).unlink()


def _of_git(tree: Path) -> list[str]:
    """The files that git knows or does not ignore and that are there; none if it is no git's tree."""
    if not (tree / ".git").exists() or shutil.which("git") is None:
        return []
    command = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True)
    names = [os.fsdecode(name) for name in done.stdout.split(b"\0") if name] if done.returncode == 0 else []
    return [name for name in names if os.path.lexists(tree / name) and not _is_folder(tree / name)]


def _of_tree(tree: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(tree):
        folders[:] = [name for name in folders if name != ".git"]
        place = Path(folder).relative_to(tree)
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from (str(place / name) for name in (*names, *links) if not name.endswith(_PRODUCTS))


def _is_folder(path: Path) -> bool:
    """Not a link to one, of which the kernel has some."""
    return path.is_dir() and not path.is_symlink()


def _is_same(source: Path, target: Path) -> bool:
    if not os.path.lexists(target):
        return False
    a, b = source.lstat(), target.lstat()
    return (a.st_mode, a.st_size, a.st_mtime_ns) == (b.st_mode, b.st_size, b.st_mtime_ns)
