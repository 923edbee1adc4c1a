"""``guestmem doctor``: what this host can do for guest-private memory, with cause and remedy where it cannot.

Every diagnosis is read or asked, here and now; what cannot be read is reported as unknown. Nothing is changed.
"""

from __future__ import annotations

from guestmem.doctor.kvm import examine_capabilities, examine_device, examine_kernel, examine_nested, examine_paging
from guestmem.doctor.looking import examine_looking
from guestmem.doctor.memory import examine_hugetlb, examine_thp
from guestmem.doctor.software import examine_extras, examine_lab
from guestmem.doctor.value import Condition, Diagnosis, HostFiles

__all__ = ("Condition", "Diagnosis", "HostFiles", "examine")


def examine(host: HostFiles | None = None) -> list[Diagnosis]:
    """Everything there is to find on this host; another ``host`` replaces its files, not its KVM or its lab."""
    from guestmem.kvm import KvmBackend
    from guestmem.lab.inventory import status
    from guestmem.objects import Kvm

    host = host or HostFiles()
    return [
        examine_kernel(host),
        examine_device(host),
        *examine_capabilities(host, lambda: Kvm(KvmBackend())),
        examine_paging(host),
        examine_nested(host),
        examine_hugetlb(host),
        examine_thp(host),
        *examine_looking(host),
        examine_lab(status()),
        examine_extras(),
    ]
