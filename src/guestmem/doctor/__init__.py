"""``guestmem doctor``: what this host can do for guest-private memory, with cause and remedy where it cannot.

Every finding is read or asked, here and now; what cannot be told is said to be unknown. Nothing is changed.
"""

from __future__ import annotations

from guestmem.doctor.capabilities import examine_capabilities
from guestmem.doctor.device import examine_device
from guestmem.doctor.extras import examine_extras
from guestmem.doctor.host import Host
from guestmem.doctor.hugepages import examine_hugetlb, examine_thp
from guestmem.doctor.kernel import examine_kernel
from guestmem.doctor.lab import examine_lab
from guestmem.doctor.paging import examine_nested, examine_paging
from guestmem.doctor.value import Finding, State

__all__ = ("Finding", "Host", "State", "examine")


def examine(host: Host | None = None) -> list[Finding]:
    """Everything there is to find on this host; another ``host`` replaces its files, not its KVM or its lab."""
    import guestmem
    from guestmem.lab.inventory import status

    host = host or Host()
    return [
        examine_kernel(host),
        examine_device(host),
        *examine_capabilities(host, lambda: guestmem.open("kvm")),
        examine_paging(host),
        examine_nested(host),
        examine_hugetlb(host),
        examine_thp(host),
        examine_lab(status()),
        examine_extras(),
    ]
