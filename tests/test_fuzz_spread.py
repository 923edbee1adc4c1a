"""Seeds spread over processes and over a Dask cluster: the same results, also when a worker dies."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from multiprocessing import active_children
from typing import Any

import pytest
from program import Guestmem

from guestmem.errors import BackendUnavailable
from guestmem.fuzz.campaign import Seed, open_campaign, run_seeds
from guestmem.fuzz.spread import Spread, over_cluster, over_processes
from guestmem.targets import pair_named

SPREAD = Spread(("model:v6.18", "model:v7.2"), None, 500, 90)


@pytest.fixture(scope="module")
def alone() -> list[Seed]:
    """What one process finds."""
    return list(run_seeds(open_campaign(*pair_named(SPREAD.names)), SPREAD.first, SPREAD.count))


def test_chunks_are_all_seeds_once_and_in_order() -> None:
    assert [seed for chunk in SPREAD.chunks() for seed in chunk] == list(range(500, 590))


def test_processes_find_what_one_finds(alone: list[Seed]) -> None:
    assert any(seed.differs for seed in alone)
    assert list(over_processes(SPREAD, 2)) == alone


def test_a_process_that_dies_loses_nothing(alone: list[Seed]) -> None:
    seeds = over_processes(SPREAD, 2)
    first = next(seeds)
    for worker in active_children():
        worker.kill()

    assert [first, *seeds] == alone


def test_a_wrong_name_is_said_as_in_one_process() -> None:
    with pytest.raises(ValueError, match="no backend"):
        list(over_processes(Spread(("kvm:nonsense", "model"), None, 0, 1), 1))


def test_a_cluster_finds_the_same_also_when_a_worker_is_killed(alone: list[Seed]) -> None:
    from distributed import LocalCluster

    made: Any = LocalCluster  # without types
    with made(n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=50) as cluster:
        seeds = over_cluster(SPREAD, cluster.scheduler_address)
        first = next(seeds)
        with suppress(ProcessLookupError):
            os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

        assert [first, *seeds] == alone


def test_a_cluster_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(BackendUnavailable, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:1"):
        list(over_cluster(SPREAD, "tcp://127.0.0.1:1"))


def test_the_command_gives_the_same_figures(guestmem_command: Guestmem) -> None:
    options = ("fuzz", "--on", "model:v6.18", "--on", "model:v7.2", "--sequences", 60, "--shrink", 0, "--json")

    one, two = guestmem_command(*options), guestmem_command(*options, "-j", 2)

    assert (one.code, one.out) == (two.code, two.out)
