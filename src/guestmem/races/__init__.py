"""The order of events: every interleaving of a fault with what takes memory away, on machines of a few pages.

Actors are programs of atomic steps over one small world (``step``, ``world``); what a step does is taken from the
functions of the kernel that it names. The explorer visits every order in which two or three actors can go on, and the
end states are checked. Rules of the protocol can be taken away one at a time (``protocol``): each must be missed.

Invariants: a verdict of "holds" means that every interleaving of that scenario was visited, up to the order of steps
that cannot matter. Left out: memory ordering (a step is atomic and seen by all), more than three actors or one file,
leaf sizes above one huge page, and whatever is not a step of an actor here. The rest of guestmem does not import this.

>>> result = try_mutation("flush-before-free")
>>> result.found, len(result.exploration.schedule.rows)
(True, 6)
"""

from __future__ import annotations

from guestmem.races.proof import Exploration, MutationResult, Races, explore_scenario, prove_races, try_mutation
from guestmem.races.protocol import MUTATIONS, NEXT, V6_12, Mutation, Protocol
from guestmem.races.scenarios import MACHINES, Scenario, scenario, scenarios
from guestmem.races.schedule import FailingSchedule, Row

__all__ = (
    "MACHINES",
    "MUTATIONS",
    "NEXT",
    "V6_12",
    "Exploration",
    "Mutation",
    "MutationResult",
    "Protocol",
    "Races",
    "Row",
    "Scenario",
    "FailingSchedule",
    "explore_scenario",
    "prove_races",
    "scenario",
    "scenarios",
    "try_mutation",
)
