"""Packages of later suites, from the mirror that apt already uses.

apt gets a state folder and a list of sources of its own, so nothing of the machine's configuration changes, and no root
is needed. The archive's signature is checked as always.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from guestmem.outfile import write_text

__all__ = ("SUITES", "download")

SUITES: Final = ("trixie-backports", "forky", "sid")  # Debian's, in the order in which they are asked
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def download(package: str, directory: Path) -> bool:
    """Put the package's .deb into the directory; False where no later suite of the mirror has it."""
    mirror = _mirror()
    state = directory / "apt"
    try:
        return bool(mirror) and any(_from(suite, mirror, package, directory, state) for suite in SUITES)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def _mirror() -> str:
    """The address of the archive that apt is configured for; "" if there is none."""
    lines = _output(["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)", "Created-By: Packages"])
    targets = (line.partition("|") for line in lines)
    return next((address for address, _, suite in targets if "security" not in suite and "/debian" in address), "")


def _from(suite: str, mirror: str, package: str, directory: Path, state: Path) -> bool:
    shutil.rmtree(state, ignore_errors=True)
    for part in ("lists/partial", "cache/archives/partial"):
        (state / part).mkdir(parents=True)
    (state / "status").touch()
    signed = f" [signed-by={_KEYRING}]" if _KEYRING.is_file() else ""
    write_text(state / "sources.list", f"deb{signed} {mirror} {suite} main\n")
    options = {
        "Dir::State": state,
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state / "cache",
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Acquire::Languages": "none",
    }
    command = ["apt-get", *(f"-o{name}={value}" for name, value in options.items())]
    return _done([*command, "update"], directory) and _done([*command, "download", package], directory)


def _done(command: Sequence[str], directory: Path) -> bool:
    return subprocess.run(command, cwd=directory, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def _output(command: Sequence[str]) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout.splitlines()
