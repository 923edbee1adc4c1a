"""One family of fixtures: the same promises on every backend there is.

``kvm`` is parametrized over the backends by name; a backend that this machine does not have skips with its own words.
``profile`` is the kernel version a promise is about: tests name others by ``@pytest.mark.parametrize("profile", ...)``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
from helpers import is_model
from program import Guestmem, runner

import guestmem
from guestmem.objects import Kvm, Vcpu, Vm

BackendName = Literal["model"]
BACKENDS: tuple[BackendName, ...] = ("model",)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lab's kernel takes minutes to build, so its tests are run by those who ask for them."""
    parser.addoption("--lab", action="store_true", help="run the tests that boot the lab's kernel (guestmem lab build)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --lab the lab's tests skip and say how they are run; with it, a lab that is not built is a failure."""
    if not config.getoption("--lab"):
        for item in items:
            if item.get_closest_marker("lab"):
                item.add_marker(pytest.mark.skip(reason="boots the lab's kernel: make test-lab"))


def open_backend(name: BackendName, profile: str) -> Kvm:
    """A fresh process of the backend; skips with the backend's own reason where this machine cannot run it."""
    try:
        return guestmem.open(name, profile=profile)
    except guestmem.BackendUnavailable as reason:
        pytest.skip(f"backend {name}: {reason}")


@pytest.fixture
def guestmem_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Guestmem:
    """Run the console script's function with some arguments."""
    return runner(monkeypatch, capsys)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> BackendName:
    """A backend's name."""
    name: BackendName = request.param
    return name


@pytest.fixture
def profile() -> str:
    """The kernel version, the newest release unless a test says otherwise."""
    return "v7.2"


@pytest.fixture
def kvm(backend: BackendName, profile: str) -> Iterator[Kvm]:
    """/dev/kvm of a fresh process; the model's invariants must hold at the end of every test."""
    with open_backend(backend, profile) as kvm:
        yield kvm
        if is_model(kvm):
            kvm.check_invariants()


@pytest.fixture
def vm(kvm: Kvm) -> Vm:
    """A VM with private memory where the kernel has such a type, else a default one."""
    types = kvm.check_extension(guestmem.uapi.KVM_CAP_VM_TYPES)
    return kvm.create_vm(guestmem.KVM_X86_SW_PROTECTED_VM if types & 2 else guestmem.KVM_X86_DEFAULT_VM)


@pytest.fixture
def default_vm(kvm: Kvm) -> Vm:
    """A VM of type 0."""
    return kvm.create_vm(guestmem.KVM_X86_DEFAULT_VM)


@pytest.fixture
def vcpu(vm: Vm) -> Vcpu:
    """A vCPU of ``vm``."""
    return vm.create_vcpu()
