"""The model against the kernels there are, on random sequences with seeds of their own: nothing is unexplained.

docs/differential.md tells of the long runs. On /dev/kvm of a kernel that no profile is of, there is nothing to compare.
"""

from __future__ import annotations

import platform
from contextlib import closing

import pytest

from guestmem.errors import BackendUnavailable
from guestmem.fuzz.campaign import Figures, causes, open_campaign, run_seeds
from guestmem.targets import pair_named, profile_of_release

FIRST = 9_000_000


def compared(kernel: str, sequences: int) -> Figures:
    """The figures of some sequences; fails with the traces of what differs."""
    a, b = pair_named(["model", kernel])
    with closing(a), closing(b):
        campaign, figures = open_campaign(a, b), Figures()
        for seed in run_seeds(campaign, FIRST, sequences):
            figures.add(seed)
        unexplained = [(group.cause, group.smallest.operations) for group in causes(campaign, figures.differ, 0)]
    assert not unexplained, unexplained
    assert not figures.ended, figures.ended
    return figures


def test_on_this_machines_kernel() -> None:
    if profile_of_release(platform.release()) is None:
        pytest.skip(f"no profile is of Linux {platform.release()}")
    try:
        figures = compared("kvm", 100)
    except BackendUnavailable as reason:
        pytest.skip(f"backend kvm: {reason}")

    assert (figures.sequences, figures.differ) == (100, [])
    assert figures.operations > 3000


@pytest.mark.lab
def test_on_the_labs_kernel() -> None:
    figures = compared("lab", 60)

    assert (figures.sequences, figures.differ) == (60, [])
    assert figures.operations > 1500
