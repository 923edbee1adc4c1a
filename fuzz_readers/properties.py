"""The hypothesis tests with new seeds for a bounded time: ``python -m fuzz_readers.properties [SECONDS] [SEED]``.

``make test`` runs them once. Each round is printed with its seed, which repeats it. A round that the time ends is no
failure; the first that fails ends the run with its output and exit status 1.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

__all__ = ("main",)

_ROOT = Path(__file__).parent.parent


def main(arguments: list[str]) -> int:
    """Rounds until the time is over; the exit status."""
    seconds = int(arguments[0]) if arguments else 60
    seed = int(arguments[1]) if arguments[1:] else random.SystemRandom().randrange(1 << 32)
    files = sorted(str(path) for path in (_ROOT / "tests").glob("test_*.py") if "import given" in path.read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "hypothesis", *files]
    # Where CI is set, hypothesis takes the same examples every time.
    variables = {name: value for name, value in os.environ.items() if name != "CI"}
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        repeat = [*command, f"--hypothesis-seed={seed}"]
        try:
            done = subprocess.run(
                repeat, cwd=_ROOT, env=variables, capture_output=True, text=True, check=False, timeout=left
            )
        except subprocess.TimeoutExpired:
            print(f"properties: seed {seed}: held until the time was over", flush=True)
            break
        print(f"properties: seed {seed}: {'held' if done.returncode == 0 else 'FAILED'}", flush=True)
        if done.returncode:
            print(done.stdout + done.stderr)
            print(f"repeat with: pytest -m hypothesis --hypothesis-seed={seed} tests")
            return 1
        seed += 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
