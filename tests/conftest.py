"""One family of fixtures: the same promises on every backend there is.

``kvm`` is parametrized over the backends by name. ``profile`` is the kernel version a promise is about: tests name
others by ``@pytest.mark.parametrize("profile", ...)``. The model is every kernel and must show all that a test asks of
it; a real kernel runs the promises about its own version, and a test that asks what only a model shows skips there.
Tests that cannot run here are not collected; the end of the run counts them once for each backend.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
REAL = ("kvm", "lab")
collect_ignore_glob = ["data/*"]  # inputs of tests, some of them programs
LEFT_OUT = pytest.StashKey[Counter[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The lab's kernel takes minutes to build, so its tests are run by those who ask for them."""
    parser.addoption("--lab", action="store_true", help="run the tests that boot the lab's kernel (guestmem lab build)")
    parser.addoption("--host-kernels", metavar="DIR", help="run guestmem host in the kernel packages of DIR, emulated")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Kernel packages are booted for those who name some."""
    left_out = collection_path.name == "test_host_kernels.py" and not config.getoption("--host-kernels")
    return True if left_out else None


@cache
def real_kernels(with_lab: bool) -> dict[str, tuple[str, str]]:
    """Profile and release of each real backend; no profile and why."""
    lab = profile_of_lab() if with_lab else ("", "not asked for: make test-lab")
    return {"kvm": profile_of_kvm(), "lab": lab}


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Where the promises are kept in this run."""
    kernels = real_kernels(config.getoption("--lab"))
    return ["promises on model: every profile", *(f"promises on {name}: {kernels[name][1]}" for name in kernels)]


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(collector: pytest.Module | pytest.Class) -> Generator[None, Any, Any]:
    """Of the tests that a function makes, those that can run on this machine; the others are counted."""
    made = yield
    if not isinstance(made, list):
        return made
    with_lab = collector.config.getoption("--lab")
    left_out = collector.config.stash.setdefault(LEFT_OUT, Counter())
    kept = []
    for item in made:
        missing = missing_backend(item, with_lab=with_lab)
        left_out.update([missing] if missing else [])
        kept += [] if missing else [item]
    return kept


def missing_backend(item: pytest.Item, *, with_lab: bool) -> str:
    """The backend that this machine lacks, in the version the test is about; "" if the test can run."""
    if item.get_closest_marker("lab") and not with_lab:
        return "lab"
    real = real_kernels(with_lab).get(backend_of(item))
    return "" if real is None or real[0] == _params(item).get("profile", DEFAULT_PROFILE) else backend_of(item)


def backend_of(item: pytest.Item) -> str:
    """The backend that a test's fixtures open; "" for a test that does not use them."""
    return str(_params(item).get("backend", ""))


def _params(item: pytest.Item) -> dict[str, Any]:
    return item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """One line for each backend whose tests were left out, and one for each reason to skip."""
    kernels = real_kernels(config.getoption("--lab"))
    for name, count in sorted(config.stash.get(LEFT_OUT, Counter()).items()):
        profile, where = kernels[name]
        why = f"they are about other kernels than {where}" if profile else where
        terminalreporter.write_line(f"not collected on {name}: {count} tests ({why})")
    reasons = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason.removeprefix('Skipped: ')}")


@contextmanager
def as_far_as_a_kernel_can_be_asked(backend: str) -> Iterator[None]:
    """On a real kernel, a promise that ends with what only a model shows was kept up to there. A model shows all."""
    try:
        yield
    except guestmem.NotVisible as reason:
        if backend not in REAL:
            raise
        pytest.skip(f"only a model shows this: {reason}")
    except pytest.skip.Exception as reason:
        if backend == "model":
            pytest.fail(f"a promise may not skip on the model: {reason}")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    """Fixtures may look at the model."""
    with as_far_as_a_kernel_can_be_asked(backend_of(item)):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """So may tests."""
    with as_far_as_a_kernel_can_be_asked(backend_of(item)):
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

        return Kvm(hold(LabBackend.on(request.getfixturevalue("machine"))))
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
