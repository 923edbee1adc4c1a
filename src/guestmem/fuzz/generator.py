"""One random sequence of operations from one seed: pure, and the same on every machine.

A sequence has a theme, which says how often each kind of operation comes; themes exist because a mixture of everything
never gets deep into anything. It starts with one or two VMs and files, and a few slots. Left out on purpose: what a
kernel must not be asked (``recordings.limits``), what is a known divergence with every use (guard regions, other
files), and fetches, which run whatever bytes a guest wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from types import MappingProxyType
from typing import Final

from guestmem.fuzz import files, memory, slots
from guestmem.fuzz.draft import Draft, DraftVm, Scope
from guestmem.recordings import ioctls
from guestmem.recordings.operation import Operation

__all__ = ("THEMES", "sequence")

Step = Callable[[Draft], None]

_STEPS: Final[Mapping[str, Step]] = MappingProxyType(
    {
        "create_file": files.create_file,
        "fallocate": files.fallocate,
        "close": files.close,
        "duplicate": files.duplicate,
        "open_other": files.open_other,
        "misplaced": files.misplaced,
        "set_slot": slots.set_slot,
        "bind": slots.bind,
        "change": slots.change,
        "delete": slots.delete,
        "attributes": slots.set_attributes,
        "map_file": memory.map_file,
        "unmap": memory.unmap,
        "protect": memory.protect,
        "advise": memory.advise,
        "host": memory.host_access,
        "hold": memory.hold,
        "touch": memory.touch,
        "pre_fault": memory.pre_fault,
    }
)
_SELDOM: Final = dict.fromkeys(_STEPS, 1.0)

# How often each step comes; what a theme does not name comes seldom.
THEMES: Final[Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        "files": {"fallocate": 14, "create_file": 5, "misplaced": 6, "duplicate": 2, "map_file": 2, "host": 2},
        "slots": {"set_slot": 16, "bind": 12, "change": 8, "delete": 5, "create_file": 3},
        "maps": {
            "map_file": 6,
            "unmap": 2,
            "protect": 3,
            "advise": 6,
            "hold": 3,
            "host": 9,
            "fallocate": 4,
            "bind": 3,
            "touch": 5,
        },
        "touch": {"touch": 16, "bind": 6, "set_slot": 5, "change": 5, "host": 5, "fallocate": 4, "delete": 2},
        "convert": {"attributes": 14, "touch": 14, "bind": 6, "set_slot": 4, "fallocate": 4, "pre_fault": 5, "host": 3},
        "close": {
            "close": 5,
            "touch": 7,
            "bind": 6,
            "fallocate": 4,
            "map_file": 3,
            "host": 4,
            "duplicate": 3,
            "unmap": 2,
        },
        "handles": {
            "misplaced": 14,
            "open_other": 3,
            "duplicate": 3,
            "close": 3,
            "bind": 4,
            "set_slot": 3,
            "pre_fault": 3,
        },
        "dirty": {"change": 14, "touch": 12, "bind": 2, "set_slot": 4, "host": 3},
        "mixture": {"touch": 6, "bind": 5, "set_slot": 5, "attributes": 5, "fallocate": 4, "host": 4, "map_file": 3},
    }
)


def sequence(seed: int, scope: Scope) -> list[Operation]:
    """The operations of a seed; seq is "fuzz-" and the seed."""
    random = Random(seed)
    state = Draft(random, scope, f"fuzz-{seed}")
    themes = [name for name in THEMES if name != "convert" or scope.attributes]
    weights = _SELDOM | dict(THEMES[random.choice(themes)])
    _begin(state)
    names = list(weights)
    for _ in range(random.randint(10, 60)):
        _STEPS[random.choices(names, list(weights.values()))[0]](state)
    return state.operations


def _begin(s: Draft) -> None:
    for _ in range(s.one((1, 1, 1, 2))):
        handle, type = s.name("vm"), s.one((*s.scope.vm_types, s.scope.vm_types[-1]))
        vm = DraftVm(handle, type)
        s.add(ioctls.CreateVm, type=type, out=handle)
        s.vms.append(vm)
        slots.boot(s, vm)
        for id in range(s.one((1, 1, 1, 2))):
            vcpu = s.name("vcpu")
            s.add(ioctls.CreateVcpu, vm=handle, id=id, out=vcpu)
            vm.vcpus.append(vcpu)
            s.vcpus.add(vcpu)
    for _ in range(s.one((1, 1, 2))):
        files.create_file(s)
    for _ in range(s.one((0, 1, 2, 3))):
        s.one((slots.set_slot, slots.bind))(s)
