"""Fuzz every reader for a bounded time: ``python -m fuzz_readers [SECONDS] [SEED] [FORMAT...]``.

Each format gets an equal share of SECONDS (its start not counted) in a process of its own, seeded with the shipped
captures of that format; SEED (1 to 2**31 - 1, else a random one) is libFuzzer's own, and is printed. An input on which
a reader raises anything but LayoutError, says more than one line, or takes longer than 10 s is kept under
fuzz_readers/found/, printed with the command that repeats it, and makes the exit status 1. Where atheris is not
installed, the program says so and passes.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from fuzz_readers.seeds import seeds_for
from guestmem.layout.formats import FORMATS

__all__ = ("main",)

_FOUND = Path(__file__).parent / "found"
_WORDS = Path(__file__).parent / "words.dict"
_EVERY = "any"  # no format given: recognition is fuzzed too
_MAX_INPUT = 65536  # bytes
_SLOW_S = 10
_MEMORY_MB = 2048


def main(arguments: list[str]) -> int:
    """Run the targets one after the other; the exit status."""
    if find_spec("atheris") is None:
        version = ".".join(map(str, sys.version_info[:2]))
        print(f"fuzz-readers: nothing is fuzzed: atheris has no wheel for Python {version} here")
        return 0
    seconds = int(arguments[0]) if arguments else 60
    named = arguments[1:]
    seed = int(named.pop(0)) if named and named[0].isdecimal() else random.SystemRandom().randrange(1, 1 << 31)
    targets = named or [_EVERY, *FORMATS]
    share = max(seconds // len(targets), 1)
    _FOUND.mkdir(exist_ok=True)
    print(f"fuzz-readers: seed {seed}", flush=True)
    failed = [name for name in targets if not _fuzz(name, share, seed)]
    print(f"fuzz-readers: {len(targets)} targets, {share} s each; failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


def _fuzz(name: str, seconds: int, seed: int) -> bool:
    """Fuzz one reader; whether it held."""
    with tempfile.TemporaryDirectory() as directory:
        for index, data in enumerate(seeds_for(name)):
            (Path(directory) / f"seed{index}").write_bytes(data)
        command = [sys.executable, "-m", "fuzz_readers.target", name, f"-max_total_time={seconds}", "-verbosity=0"]
        command += [f"-seed={seed}"]
        command += [f"-max_len={_MAX_INPUT}", f"-timeout={_SLOW_S}", f"-rss_limit_mb={_MEMORY_MB}"]
        command += [f"-artifact_prefix={_FOUND}/{name}-", f"-dict={_WORDS}", "-print_final_stats=1", directory]
        done = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    said = (done.stdout + done.stderr).splitlines()
    runs = next((line.split()[-1] for line in said if "number_of_executed_units" in line), "no")
    print(f"{name:<20} {runs:>8} inputs", "held" if done.returncode == 0 else "FAILED", flush=True)
    if done.returncode:
        print("\n".join(line for line in said if not line.startswith(("INFO:", "WARNING:", "stat::"))))
        print(f"repeat with: python -m fuzz_readers.target {name} {_FOUND}/{name}-...")
    return done.returncode == 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
