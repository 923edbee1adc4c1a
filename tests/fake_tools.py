"""Stand-ins for the tools that build a kernel, on a PATH of their own, and a source for them."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import pytest

from guestmem.lab import kernel

# A make that does what the build needs of it: its log, the place of its output, a configuration, a kernel.
MAKE = """#!/bin/sh
echo "$@" >> "$FAKE/made"
for word in "$@"; do case "$word" in O=*) out=${word#O=};; KCONFIG_ALLCONFIG=*) asked=${word#*=};; esac; done
if [ -n "$asked" ]; then
    cat "$asked" > "$out/.config"
    if [ -e "$FAKE/drop" ]; then sed -i "/$(cat "$FAKE/drop")=/d" "$out/.config"; fi
    exit 0
fi
echo "  CC      init/main.o"
if [ -e "$FAKE/fail" ]; then cat "$FAKE/fail"; exit 2; fi
if [ -e "$FAKE/hang" ]; then sleep 1000 & echo $! > "$FAKE/hanging"; wait; fi
mkdir -p "$out/include/config"
echo 6.12.9-guestmem > "$out/include/config/kernel.release"
echo kernel > "$out/vmlinux"
"""


def lay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the stand-ins on PATH, a cache of its own, and linux.tar.gz, an archive of a source."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in kernel.TOOLS:
        (tools / name).write_text(MAKE if name == "make" else "#!/bin/sh\necho 12.2.0\n")
        (tools / name).chmod(0o755)
    for name in ("sh", "cat", "sed", "mkdir", "sleep", "tar", "gzip", "ls"):
        found = shutil.which(name)
        assert found
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("GUESTMEM_CACHE", str(tmp_path / "cache"))
    tree = tmp_path / "linux"
    tree.mkdir()
    (tree / "Kconfig").write_text("mainmenu\n")
    with tarfile.open(tmp_path / "linux.tar.gz", "w:gz") as archive:
        archive.add(tree, "linux-6.12.9")
    return tmp_path
