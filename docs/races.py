"""Print docs/races.md from guestmem.races: `make docs` writes it, a test compares it."""

from __future__ import annotations

from guestmem.races import (
    MACHINES,
    NEXT,
    V6_12,
    Exploration,
    MutationResult,
    Races,
    explore_scenario,
    prove_races,
    scenario,
)
from guestmem.races.proof import totals
from guestmem.report.races_text import columns

__all__ = ("page",)

HEAD = """# The order of events

Written by `make docs` from `guestmem.races`; `guestmem prove races` prints the same. No solver is involved: the
actors below are programs of atomic steps over a machine of a few pages, and **every order** in which two or three of
them can go on is explored.

## What was explored

A fault looks up the slot, samples the invalidation count, compares the attribute, takes the file, gets the page, takes
`mmu_lock` for reading, checks again, decides the level, and maps. It races with a hole punched in the file, a change of
attributes, the deletion or the move of a slot, the last close of the file, memory failure, another vCPU, and
`KVM_PRE_FAULT_MEMORY`. The steps are those of the functions `kvm_tdp_mmu_page_fault`, `kvm_faultin_pfn`,
`kvm_gmem_get_pfn`, `kvm_gmem_punch_hole`, `kvm_gmem_error_folio`, `kvm_gmem_release`, `kvm_gmem_unbind`,
`kvm_vm_set_mem_attributes`, `kvm_set_memslot` and `kvm_tdp_map_page` of Linux 6.12, plus what huge folios in a file
(profile `next`) need. Two base pages make a huge page; the slot has four. On machine `in-place` attributes belong to
the file, as queued for 7.4 (799c9fadc639, dcde2f853ff4): conversion is KVM_SET_MEMORY_ATTRIBUTES2, every access goes to
the file, and there are base pages only.

When no actor can go on, all of this must hold:

* every actor has ended (no deadlock), and an end can be reached from every state on the way (the retry ends);
* whatever stage 2 or a TLB maps is what slot, binding, file and attribute say: nothing stale, nothing outside a
  binding, no private page reachable as shared, no poisoned page;
* no page left the file while it was mapped, no actor used a slot that was freed, and no page, reference, lock or count
  is left behind.

An interleaving is a way from the start to an end. A step that leads back to an earlier state (a retry that changes
nothing) is not counted. Where the order of two steps cannot matter, one order is explored (persistent sets, from the
fields that each step reads and writes); the tests compare that with the plain product of the actors. Each row sums up
all pairs, or all triples, of the actors of a machine, also those with the same actor twice.
"""

COVERAGE = """## What this does not say

* It says nothing about memory ordering: a step happens at once and all actors see it. Where the kernel needs a barrier
  (between sampling the count and comparing the attribute, say), the barrier is assumed.
* The steps are a reading of the source, not the source. Whether a kernel does what
  [kernel-behaviour.md](kernel-behaviour.md) says is measured by replaying recordings (`guestmem run`), which cannot
  steer schedules as finely as this.
* Small machines only: one VM, one file, one slot, one size of huge page, up to three actors, each once. A fourth actor
  or a second huge level could show what three actors and one level cannot.
* "The retry ends" assumes fair scheduling: an end can always be reached. It gives no bound on the time.
* Not modelled: the checks of the invalidation that a fault makes before it takes `mmu_lock` (they only save time),
  `kvm_gmem_populate`, hardware types with split tables (SNP, TDX), shadow paging, dirty logging, MMU notifiers of the
  host's mappings, page migration, the file's MMAP flag, and allocation failures.
"""


def page(races: Races) -> str:
    """The page."""
    parts = [HEAD, _totals(races), _machines(), _pairs(races), _in_place(), *_mutations(races), *_released(races)]
    parts.append(_pre_fault())
    return "\n".join([*parts, COVERAGE])


def _table(head: str, rows: list[str]) -> str:
    rule = "| " + " | ".join("---" for _ in head.split("|")[1:-1]) + " |"
    return "\n".join([head, rule, *rows, ""])


def _totals(races: Races) -> str:
    rows = [
        f"| {row.machine} | {row.actors} | {row.scenarios} | {row.worlds} | {row.steps} | {_short(row.interleavings)} "
        f"| {row.ends} | {row.verdict} |"
        for row in totals(races)
    ]
    return _table("| machine | actors | scenarios | states | steps | interleavings | end states | verdict |", rows)


def _machines() -> str:
    rows = [
        f"| {machine.name} | {machine.at_start} | "
        + ", ".join(f"{name} ({actor.label})" for name, actor in machine.actors.items())
        + " |"
        for machine in MACHINES.values()
    ]
    return _table("| machine | at the start | actors |", rows)


def _pairs(races: Races) -> str:
    rows = [
        f"| {one.scenario.name} | {one.worlds} | {one.interleavings} | {_ways(one)} | {one.verdict} |"
        for one in races.sound
        if len(one.scenario.names) == 2
    ]
    table = _table("| pair | states | interleavings | how the two may end | verdict |", rows)
    return f"### Pairs\n\n{table}"


def _in_place() -> str:
    names = ("touch+to-shared", "touch+close", "touch+delete", "touch+to-shared+to-private")
    found = [explore_scenario(scenario(f"in-place/{name}")) for name in names]
    rows = [f"| {one.scenario.name} | {_ways(one)} | {one.verdict} |" for one in found]
    return f"""## Two looks at the attribute of a file

A fault looks twice, without a lock, whether its frame is private: on entry, and before it takes the page. With
attributes of VMs only a change of them can come between. With those of files a deletion and the last close can as well,
because without a slot that is valid and a file that is open a frame is shared. The access then ends as a memory fault
(KVM_EXIT_MEMORY_FAULT), though in a quiet VM a deleted slot is MMIO; entering the guest again resolves it.

A conversion to private counts references (EAGAIN), and a fault holds one while it maps the page. So a guest's access
alone can make a conversion try again. This was explored, not measured: no kernel has it.

{_table("| scenario | how the actors may end | verdict |", rows)}"""


def _ways(one: Exploration) -> str:
    return "; ".join(", ".join(way) for way in one.outcomes)


def _short(number: int) -> str:
    return str(number) if number < 10**9 else f"{number:.2e}"


def _mutations(races: Races) -> list[str]:
    head = "## Each rule, and the shortest schedule that fails without it\n"
    return [head, *(_mutation(result) for result in races.mutations)]


def _mutation(result: MutationResult) -> str:
    one = result.exploration
    return (
        f"### Without {result.mutation.name}\n\n{result.mutation.explanation} (`{one.scenario.name}`)\n\n{_block(one)}"
    )


def _block(one: Exploration) -> str:
    return f"```text\n{columns(one)}\n```\n"


def _released(races: Races) -> list[str]:
    head = """## Linux 6.12

The same exploration with the steps of 6.12: single pages only, and without the rules that it does not have. Triples are
tried only if no pair among them fails. The failures below were found by reading and exploring. Only the two about
pre-fault were measured on a kernel ([kernel-behaviour.md](kernel-behaviour.md)):
"""
    rows = []
    for one in races.released:
        assert one.schedule is not None, "bug in guestmem: refuted without a schedule"
        rows.append(f"| {one.scenario.name} | {', '.join(one.schedule.kinds)} | {len(one.schedule.rows)} |")
    table = _table("| scenario | what | steps of the shortest schedule |", rows)
    reading = """* *pre-fault against delete or move*: see below.
* *punch hole against memory failure*: `memory_failure` calls `kvm_gmem_error_folio` with the folio locked, which then
  takes the file's invalidate lock; punching a hole takes these two the other way round (schedule: *without
  poison-locks-file-first*).
* *memory failure, last close and slot deletion*: a slot deleted while its file is being released is unbound without the
  file's invalidate lock, so an invalidation that memory failure has begun for the binding may find none when it
  ends, and is never counted out (schedule: *without unbind-dying-locked*).
"""
    return [head, table, reading]


def _pre_fault() -> str:
    rows = []
    for name in ("fresh/pre-fault+delete", "shared/pre-fault+delete", "shared/pre-fault+delete+signal",
                 "plain/pre-fault+delete", "plain/pre-fault+delete+signal", "plain/pre-fault-there+move",
                 "plain/pre-fault-there+move+signal"):  # fmt: skip
        old, new = (explore_scenario(scenario(name), protocol) for protocol in (V6_12, NEXT))
        rows.append(f"| {name} | {_end(old)} | {_end(new)} |")
    table = _table("| scenario | Linux 6.12 | with both repairs (7.2) |", rows)
    return f"""## Pre-fault against slot deletion

`KVM_PRE_FAULT_MEMORY` differs between 6.12 and 7.2 in two ways, both measured
([kernel-behaviour.md](kernel-behaviour.md)): on 6.12 the call and the deletion wait for each other until a signal ends
the call, on both VM types; and after a deletion or a move on a default VM, if the vCPU has not run since, the call
spins until a signal. On 7.2 the call ends at once with EAGAIN (there is one page here, so there is no progress to
report), and the root is renewed. The exploration agrees. Without a signal some schedules have no end: the call repeats
and the deletion waits in `synchronize_srcu`. With a signal every schedule ends, with EINTR or because the call was not
in the way. With the two repairs every schedule ends by itself.

{table}"""


def _end(one: Exploration) -> str:
    endless = one.schedule is not None and "retry without end" in one.schedule.kinds
    return ("**some schedules never end**; else " if endless else "") + _ways(one)


if __name__ == "__main__":
    print(page(prove_races()), end="")
