"""The kernel package that users of the distribution run, booted in the lab."""

from __future__ import annotations

import shutil

import pytest

from guestmem import lab
from guestmem.errors import BackendUnavailable
from guestmem.fuzz.campaign import open_campaign, run_seeds
from guestmem.targets import pair_named
from guestmem.uapi import KVM_CAP_PRE_FAULT_MEMORY

pytestmark = [
    pytest.mark.lab,
    pytest.mark.skipif(
        shutil.which("apt-get") is None, reason="packages are downloaded with apt-get, which is missing"
    ),
]
NAME = "linux-image-6.12-cloud-amd64"  # 34 MB; its KVM is in modules


@pytest.fixture(scope="module")
def package() -> str:
    lab.build(NAME)
    return NAME


def test_its_kernel_answers_and_offers_what_it_was_built_with(package: str) -> None:
    with lab.boot(package) as machine:
        assert "-cloud-amd64" in machine.release


def test_its_modules_take_their_parameters_from_the_command_line(package: str) -> None:
    """Without two-dimensional paging there is no pre-fault."""
    hardware = lab.Hardware(kernel_arguments=("kvm_amd.npt=0",))
    with lab.boot(package, hardware) as machine, lab.LabBackend.on(machine) as backend:
        assert backend.check_extension(backend.open_kvm(), KVM_CAP_PRE_FAULT_MEMORY) == 0


def test_programs_of_the_host_cannot_run_on_a_kernel_without_9p(package: str) -> None:
    with pytest.raises(BackendUnavailable, match=r"has no 9p.*build its version from source"):
        lab.exec_(["true"], kernel=package)


def test_the_model_of_that_machine_agrees_with_it(package: str) -> None:
    """guest_memfd is not built into it, and VMs have no attributes: the machine behind it is asked."""
    a, b = pair_named(["model", f"lab:{package}"])
    try:
        found = list(run_seeds(open_campaign(a, b), 0, 10))
    finally:
        a.close()
        b.close()

    assert sum(seed.operations for seed in found) > 200
    assert [seed.seed for seed in found if seed.differs] == []
