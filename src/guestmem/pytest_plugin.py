"""The pytest plugin: a VMM's tests on the model in milliseconds, and the same tests on a real kernel.

``guestmem_backend`` is a fresh process with /dev/kvm, ``guestmem_vm`` a VM of the kind that has private memory. Which
backends is the user's choice on the command line; a test runs once on each. A backend that was chosen and is not there
is an error, since a run that quietly skipped everything would look like one that passed; no backend stands in for
another. No backend is imported before a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

import guestmem

if TYPE_CHECKING:
    from guestmem import Kvm, Vm
    from guestmem.lab import LabMachine

__all__ = (
    "guestmem_backend",
    "guestmem_lab",
    "guestmem_vm",
    "pytest_addoption",
    "pytest_configure",
    "pytest_generate_tests",
)

_BACKENDS = ("model", "kvm", "lab")
_MARK = "guestmem_requires"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, in a group of their own."""
    group = parser.getgroup("guestmem", "tests of guest-private memory")
    group.addoption(
        "--guestmem-backend",
        action="append",
        metavar="NAME",
        help="where tests with guestmem fixtures run: model (the default), model:PROFILE, kvm, lab or lab:KERNEL; "
        "may be repeated",
    )
    group.addoption(
        "--guestmem-skip-missing",
        action="store_true",
        help="skip on a chosen backend that is not available here, instead of failing",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, and refuse a backend that does not exist before anything runs."""
    config.addinivalue_line(
        "markers",
        f"{_MARK}(*names): skip unless the backend has these: 'private' (software-protected VMs), or capabilities "
        "such as 'KVM_CAP_PRE_FAULT_MEMORY'",
    )
    for name in _chosen(config):
        kind, _, which = name.partition(":")
        if kind not in _BACKENDS or (which and kind == "kvm"):
            needed = f"needed {', '.join(_BACKENDS)}, model:PROFILE or lab:KERNEL"
            raise pytest.UsageError(f"--guestmem-backend {name}: {needed}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every test that uses a backend runs once on each that was chosen."""
    if "guestmem_backend" in metafunc.fixturenames:
        metafunc.parametrize("guestmem_backend", _chosen(metafunc.config), indirect=True)


@pytest.fixture(scope="session")
def guestmem_lab() -> Iterator[Callable[[str], LabMachine]]:
    """The lab's machine with a kernel ("": its own), booted once for all tests that run there."""
    from guestmem import lab

    machines: dict[str, LabMachine] = {}
    with ExitStack() as stack:

        def booted(kernel: str) -> LabMachine:
            if kernel not in machines:
                machines[kernel] = stack.enter_context(lab.boot(kernel or lab.DEFAULT))
            return machines[kernel]

        yield booted


@pytest.fixture
def guestmem_backend(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    """A fresh process of the backend; on the model its invariants must hold at the end of the test."""
    name: str = request.param
    with ExitStack() as stack:
        try:
            kvm = stack.enter_context(_opened(name, request))
        except guestmem.BackendUnavailable as reason:
            if request.config.getoption("--guestmem-skip-missing"):
                pytest.skip(f"backend {name}: {reason}")
            pytest.fail(f"backend {name}: {reason} (--guestmem-skip-missing skips)", pytrace=False)
        _require(request, kvm)
        yield kvm
        if kvm.backend.name == "model":
            kvm.check_invariants()


@pytest.fixture
def guestmem_vm(guestmem_backend: Kvm) -> Vm:
    """A software-protected VM: pages can be private. Skips where the kernel has none, and says so."""
    if not _has(guestmem_backend, "private"):
        pytest.skip(f"backend {guestmem_backend.backend.name}: its kernel offers no software-protected VMs")
    return guestmem_backend.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM)


def _chosen(config: pytest.Config) -> list[str]:
    names = config.getoption("--guestmem-backend") or ["model"]
    return list(dict.fromkeys(part for name in names for part in name.split(",")))


def _opened(name: str, request: pytest.FixtureRequest) -> Kvm:
    kind, _, which = name.partition(":")
    if kind == "lab":
        from guestmem.lab import LabBackend

        return guestmem.Kvm(LabBackend.on(request.getfixturevalue("guestmem_lab")(which)))
    if kind == "kvm":
        return guestmem.open("kvm")
    return guestmem.open("model", profile=which or None)


def _require(request: pytest.FixtureRequest, kvm: Kvm) -> None:
    for mark in request.node.iter_markers(_MARK):
        for name in mark.args:
            if not _has(kvm, name):
                pytest.skip(f"backend {kvm.backend.name}: its kernel does not have {name}")


def _has(kvm: Kvm, name: str) -> bool:
    """Whether /dev/kvm, or a default VM of it, answers the capability with more than 0."""
    if name == "private":
        return bool(kvm.check_extension(guestmem.KVM_CAP_VM_TYPES) >> guestmem.KVM_X86_SW_PROTECTED_VM & 1)
    number = getattr(guestmem, name, None) if name.startswith("KVM_CAP_") else None
    if number is None:
        raise pytest.UsageError(
            f"{_MARK}({name!r}): needed 'private' or the name of a capability, as guestmem.KVM_CAP_GUEST_MEMFD"
        )
    if kvm.check_extension(number) > 0:
        return True
    vm = kvm.create_vm()
    try:
        return vm.check_extension(number) > 0
    finally:
        vm.close()
