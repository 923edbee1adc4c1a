"""``python -m conformance [--lab] KERNEL...``: build each kernel's selftests, run them, print a table.

KERNEL is a version that the distribution has as a package (6.12), an archive or a tree. With --lab each test also runs
on that kernel, and the exit status is 1 if one ends otherwise there; without, it is 1 if one does not pass.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from conformance.running import Outcome, on_lab, on_model
from conformance.selftests import TESTS, Selftest, build, tree_in, version_of
from guestmem.errors import BackendUnavailable, InputError
from guestmem.lab import cache
from guestmem.lab.errors import BuildFailed
from guestmem.lab.source import find_source
from guestmem.model.profiles import PROFILES

_LAB_S = 600


def main() -> int:
    """Run what the command line asks for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("kernels", nargs="*", default=["6.12"], metavar="KERNEL")
    parser.add_argument("--lab", action="store_true", help="also run each test on the kernel itself, in the lab")
    parser.add_argument("--profile", help="else the one of the kernel's version, or of the newest before it")
    parser.add_argument("--only", metavar="TEST", help="one test by its name")
    given = parser.parse_args()
    try:
        differences = [_kernel(spec, given.profile, given.only, lab=given.lab) for spec in given.kernels]
    except (BackendUnavailable, BuildFailed) as missing:
        print(f"conformance: {missing}", file=sys.stderr)
        return 4
    except InputError as wrong:
        print(f"conformance: {wrong}", file=sys.stderr)
        return 2
    return 1 if sum(differences) else 0


def _kernel(spec: str, profile: str | None, only: str | None, *, lab: bool) -> int:
    """One kernel's table; how many tests do not end as they should."""
    directory = cache.directory() / "selftests" / Path(spec).name
    programs = build(find_source(spec), directory)
    version = version_of(tree_in(directory))
    chosen = profile or _profile_of(version)
    print(f"selftests of {version}, profile {chosen}")
    wrong = 0
    for test in TESTS:
        if test.name in programs and only in (None, test.name):
            wrong += _one(test, programs[test.name], chosen, spec if lab else None)
    return wrong


def _one(test: Selftest, program: Path, profile: str, kernel: str | None) -> int:
    model = on_model(program, test.arguments, profile, test.limit_s)
    line = f"  {test.title:<46} model {model!s:<10} {model.seconds:6.1f} s"
    if kernel is None:
        print(line, flush=True)
        return int(not model.agrees(Outcome("pass", 0)))
    real = on_lab(program, test.arguments, kernel, _LAB_S)
    note = ""
    if not model.agrees(real):  # some tests wait for a fixed time, which a busy machine can miss
        model = on_model(program, test.arguments, profile, test.limit_s)
        note = "   in a second run" if model.agrees(real) else f"   DIFFERS, in a second run too: {model}"
    print(f"{line}   kernel {real!s:<10} {real.seconds:6.1f} s{note}", flush=True)
    return int(not model.agrees(real))


def _profile_of(version: str) -> str:
    """The profile of the newest kernel that is no newer.

    >>> _profile_of("7.2.13"), _profile_of("6.16")
    ('v7.2', 'v6.12')
    """
    wanted = _number(version)
    known = [name for name in PROFILES if name.startswith("v") and _number(name[1:]) <= wanted]
    return max(known, key=lambda name: _number(name[1:]), default="v6.12")


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


if __name__ == "__main__":
    sys.exit(main())
