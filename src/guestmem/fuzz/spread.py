"""Seeds spread over processes, of this machine or of a Dask cluster.

Chunks of seeds are the unit: any worker, on any machine, finds the same in one. A worker opens its own backends once
and keeps them. One that dies loses nothing but time, because its chunk is given to another.
"""

from __future__ import annotations

import atexit
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import active_children, get_context
from typing import Any, Final

from guestmem.errors import BackendUnavailable
from guestmem.fuzz.campaign import Campaign, Seed, open_campaign, run_seeds
from guestmem.targets import pair_named

__all__ = ("Spread", "over_cluster", "over_processes")

_CHUNK: Final = 25  # seeds
_POOLS: Final = 3  # pools that may break, one after the other, on the same chunk


@dataclass(frozen=True, slots=True)
class Spread:
    """What every worker has to know: the backends' names, the model's profile, and the seeds [first, first + count)."""

    names: tuple[str, ...]
    profile: str | None
    first: int
    count: int

    def chunks(self) -> list[range]:
        """The seeds, a few for each call of a worker."""
        end = self.first + self.count
        return [range(start, min(start + _CHUNK, end)) for start in range(self.first, end, _CHUNK)]


def over_processes(spread: Spread, jobs: int) -> Iterator[Seed]:
    """What became of each seed, in order, by that many processes."""
    waiting = spread.chunks()
    tries = 0
    while waiting:
        with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
            try:
                for found in pool.map(_chunk, [spread] * len(waiting), list(waiting)):
                    waiting.pop(0)
                    tries = 0
                    yield from found
            except BrokenProcessPool:
                tries += 1
                if tries == _POOLS:
                    raise BackendUnavailable(f"a process that runs seeds from {waiting[0].start} on dies") from None
            except BaseException:
                for worker in active_children():  # else the pool waits for their answers
                    worker.kill()
                raise


def over_cluster(spread: Spread, address: str) -> Iterator[Seed]:
    """What became of each seed, in order, by the workers of a Dask cluster; they need guestmem and its backends."""
    try:
        from distributed import Client
    except ImportError:
        raise BackendUnavailable("--dask needs more packages: pip install 'guestmem[cluster]' (distributed)") from None
    try:
        client: Any = Client(address, timeout=5)  # type: ignore[no-untyped-call]
    except OSError as error:
        raise BackendUnavailable(f"no Dask scheduler answers at {address}: {error}") from None
    with client:
        futures = client.map(_chunk, [spread] * len(spread.chunks()), spread.chunks(), pure=False, retries=_POOLS)
        for future in futures:
            yield from future.result()


def _chunk(spread: Spread, seeds: range) -> list[Seed]:
    return list(run_seeds(_campaign(spread.names, spread.profile), seeds.start, len(seeds)))


@lru_cache(maxsize=1)
def _campaign(names: Sequence[str], profile: str | None) -> Campaign:
    a, b = pair_named(names, profile)
    atexit.register(a.close)
    atexit.register(b.close)
    return open_campaign(a, b)
