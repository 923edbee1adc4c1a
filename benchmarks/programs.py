"""A program's calls and guest under ``guestmem exec``, beside the same program on this machine's /dev/kvm."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from benchmarks.measure import say

_HERE: Final = Path(__file__).parent
_EXEC: Final = (sys.executable, "-m", "guestmem", "exec", "--")
_TITLES: Final = {
    "ioctl": "exec: an ioctl of a program",
    "port": "exec: a port exit",
    "mmio": "exec: an MMIO exit",
    "page": "exec: a TLB miss of the guest",
}


def programs() -> None:
    """Compile the program and run it both ways."""
    if shutil.which("gcc") is None or importlib.util.find_spec("unicorn") is None:
        say("exec", "skipped", "needs gcc and the extra exec")
        return
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "programs"
        include = f"-I{_HERE.parent / 'examples' / 'programs'}"
        subprocess.run(["gcc", "-O2", include, "-o", program, _HERE / "programs.c"], check=True)
        ours, theirs = _figures([*_EXEC, str(program)]), _figures([str(program)])
    for name, value in ours.items():
        compared = f"kernel {theirs[name]:.1f} us" if name in theirs else "no /dev/kvm to compare with"
        say(_TITLES[name], f"{value:.1f} us", compared)
    start = time.perf_counter()
    subprocess.run([*_EXEC, "true"], check=True)
    say("exec: start and end of a program", f"{(time.perf_counter() - start) * 1e3:.0f} ms")


def _figures(command: list[str]) -> dict[str, float]:
    """Microseconds by name; as far as the program came."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    pairs = (line.split() for line in done.stdout.splitlines())
    return {name: float(value) for name, value in pairs}
