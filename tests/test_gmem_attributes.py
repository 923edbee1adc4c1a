"""KVM_SET_MEMORY_ATTRIBUTES2, the attributes of a guest_memfd."""

from __future__ import annotations

import pytest

from guestmem.objects import Kvm


@pytest.mark.parametrize("profile", ["v6.18", "v7.2", "v7.3"])
@pytest.mark.parametrize(
    ("on", "errno"),
    [
        ("gmem", "ENOTTY"),
        ("vm", "ENOTTY"),
        ("memfd", "ENOTTY"),
        ("kvm", "EINVAL"),
        ("vcpu", "EINVAL"),
        ("closed", "EBADF"),
    ],
)
def test_no_descriptor_of_a_released_kernel_takes_it(kvm: Kvm, profile: str, on: str, errno: str) -> None:
    backend = kvm.backend
    vm = backend.create_vm(kvm.fd, 0)
    fds = {"kvm": kvm.fd, "vm": vm, "closed": -1}
    fds |= {"gmem": backend.create_guest_memfd(vm, 4096, 0), "vcpu": backend.create_vcpu(vm, 0)}
    fds |= {"memfd": backend.open_aux("memfd")}

    answer = backend.gmem_set_memory_attributes(fds[on], 0, 4096, 8, 0)

    assert answer.error_offset is None
    assert answer.refused is not None
    assert answer.refused.name == errno
