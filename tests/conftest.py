"""One family of fixtures: the same promises on every backend there is.

``kvm`` is parametrized over the backends by name. ``profile`` is the kernel version a promise is about: tests name
others by ``@pytest.mark.parametrize("profile", ...)``. The model is every kernel; a real kernel runs the promises about
its own version, and the header says which kernels there are. What only a model shows skips there, and says so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Literal

import pytest
from helpers import is_model
from program import Guestmem, runner
from realkernels import hold, profile_of_kvm, profile_of_lab

import guestmem
from guestmem.objects import Kvm, Vcpu, Vm

if TYPE_CHECKING:
    from guestmem.lab import LabMachine

BackendName = Literal["model", "kvm", "lab"]
DEFAULT_PROFILE = "v7.2"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lab's kernel takes minutes to build, so its tests are run by those who ask for them."""
    parser.addoption("--lab", action="store_true", help="run the tests that boot the lab's kernel (guestmem lab build)")


@cache
def real_kernels(with_lab: bool) -> dict[str, tuple[str, str]]:
    """Profile and release of each real backend; no profile and why."""
    lab = profile_of_lab() if with_lab else ("", "not asked for: make test-lab")
    return {"kvm": profile_of_kvm(), "lab": lab}


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Where the promises are kept in this run."""
    kernels = real_kernels(config.getoption("--lab"))
    return ["promises on model: every profile", *(f"promises on {name}: {kernels[name][1]}" for name in kernels)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --lab the lab's tests skip and say how they are run; with it, a lab that is not built is a failure.

    Promises about another kernel than a backend's are none of its own, and are not collected for it.
    """
    with_lab = config.getoption("--lab")
    kept: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        (kept if _concerns(item, with_lab) else others).append(item)
        if item.get_closest_marker("lab") and not with_lab:
            item.add_marker(pytest.mark.skip(reason="boots the lab's kernel: make test-lab"))
    items[:] = kept
    config.hook.pytest_deselected(items=others)


def _concerns(item: pytest.Item, with_lab: bool) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    real = real_kernels(with_lab).get(str(params.get("backend")))
    return real is None or real[0] == params.get("profile", DEFAULT_PROFILE)


@contextmanager
def as_far_as_a_kernel_can_be_asked() -> Iterator[None]:
    """A promise that ends with what only a model shows was kept up to there."""
    try:
        yield
    except guestmem.NotVisible as reason:
        pytest.skip(f"only a model shows this: {reason}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Fixtures may look at the model."""
    with as_far_as_a_kernel_can_be_asked():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """So may tests."""
    with as_far_as_a_kernel_can_be_asked():
        yield


@pytest.fixture(scope="session")
def machine() -> Iterator[LabMachine]:
    """The lab, booted once for all."""
    from guestmem import lab

    with lab.boot() as machine:
        yield machine


def open_backend(name: BackendName, profile: str, request: pytest.FixtureRequest) -> Kvm:
    """A fresh process of the backend."""
    if name == "lab":
        from guestmem.lab import LabBackend

        return Kvm(hold(LabBackend(request.getfixturevalue("machine"))))
    if name == "kvm":
        kvm = guestmem.open("kvm")
        hold(kvm.backend)
        return kvm
    return guestmem.open("model", profile=profile)


@pytest.fixture
def guestmem_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Guestmem:
    """Run the console script's function with some arguments."""
    return runner(monkeypatch, capsys)


@pytest.fixture(params=["model", "kvm", pytest.param("lab", marks=pytest.mark.lab)])
def backend(request: pytest.FixtureRequest) -> BackendName:
    """A backend's name."""
    name: BackendName = request.param
    return name


@pytest.fixture
def profile() -> str:
    """The kernel version, the newest release unless a test says otherwise."""
    return DEFAULT_PROFILE


@pytest.fixture
def kvm(backend: BackendName, profile: str, request: pytest.FixtureRequest) -> Iterator[Kvm]:
    """/dev/kvm of a fresh process; the model's invariants must hold at the end of every test."""
    with open_backend(backend, profile, request) as kvm:
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
