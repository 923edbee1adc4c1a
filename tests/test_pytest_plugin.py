"""The pytest plugin: the user chooses the backends, and what did not run is never mistaken for what passed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from guestmem.errors import BackendUnavailable

pytest_plugins = ["pytester"]
ROOT = Path(__file__).parent.parent
MODEL = ("--guestmem-backend", "model")
EXAMPLE = ROOT / "examples" / "small_vmm"

USES_A_VM = """
    def test_private_memory(guestmem_vm):
        assert guestmem_vm.create_guest_memfd(0x1000)
"""


@pytest.fixture
def without_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no /dev/kvm."""
    opened = __import__("guestmem").open

    def refusing(name: str, **options: object) -> object:
        if name == "kvm":
            raise BackendUnavailable("/dev/kvm cannot be opened (ENOENT): load the modules")
        return opened(name, **options)

    monkeypatch.setattr("guestmem.open", refusing)


def test_without_options_tests_run_on_the_model(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        def test_where(guestmem_backend):
            assert guestmem_backend.backend.name == "model"
    """)

    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_a_test_runs_once_on_each_backend_that_was_chosen(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_A_VM)

    result = pytester.runpytest_inprocess(
        "-v", "--guestmem-backend", "model:v6.12,model:v7.2", "--guestmem-backend=model"
    )

    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*[[]model:v6.12[]]*", "*[[]model:v7.2[]]*", "*[[]model[]]*"])


def test_every_test_has_a_process_of_its_own(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.parametrize("again", [1, 2])
        def test_descriptors_start_anew(guestmem_backend, again):
            assert guestmem_backend.create_vm(0).fd == guestmem_backend.fd + 1
    """)

    pytester.runpytest_inprocess().assert_outcomes(passed=2)


@pytest.mark.usefixtures("without_kvm")
def test_a_chosen_backend_that_is_not_there_is_an_error(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_A_VM)

    result = pytester.runpytest_inprocess("--guestmem-backend", "kvm")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*backend kvm: /dev/kvm cannot be opened (ENOENT)*--guestmem-skip-missing skips*"])


@pytest.mark.usefixtures("without_kvm")
def test_the_user_may_have_it_skipped_and_is_told_why(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_A_VM)

    result = pytester.runpytest_inprocess("-rs", "--guestmem-backend", "kvm,model", "--guestmem-skip-missing")

    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*SKIPPED*backend kvm: /dev/kvm cannot be opened (ENOENT)*"])


def test_a_kernel_without_private_memory_skips_what_needs_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_A_VM)

    result = pytester.runpytest_inprocess("-rs", "--guestmem-backend", "model:v6.18")

    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*its kernel offers no software-protected VMs*"])


@pytest.mark.parametrize(
    ("needed", "backend", "outcome"),
    [
        ("'private'", "model:v7.2", {"passed": 1}),
        ("'private'", "model:v6.18", {"skipped": 1}),
        ("'KVM_CAP_PRE_FAULT_MEMORY'", "model:v6.12", {"passed": 1}),
        ("'KVM_CAP_PRE_FAULT_MEMORY'", "model:v6.18", {"skipped": 1}),
        ("'KVM_CAP_GUEST_MEMFD_FLAGS'", "model:v6.12", {"skipped": 1}),
        ("'KVM_CAP_GUEST_MEMFD_FLAGS', 'private'", "model:v7.2", {"passed": 1}),
        ("'KVM_CAP_GUEST_MEMFD_FLAGS', 'private'", "model:v6.18", {"skipped": 1}),
    ],
)
def test_a_test_that_requires_what_a_kernel_has_not_is_skipped_there(
    needed: str, backend: str, outcome: dict[str, int], pytester: pytest.Pytester
) -> None:
    pytester.makepyfile(f"""
        import pytest

        @pytest.mark.guestmem_requires({needed})
        def test_it(guestmem_backend):
            pass
    """)

    pytester.runpytest_inprocess("--strict-markers", "--guestmem-backend", backend).assert_outcomes(**outcome)


def test_a_requirement_that_does_not_exist_is_an_error_not_a_skip(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import pytest

        @pytest.mark.guestmem_requires("KVM_CAP_MISSPELT")
        def test_it(guestmem_backend):
            pass
    """)

    result = pytester.runpytest_inprocess()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*'KVM_CAP_MISSPELT'*needed 'private' or the name of a capability*"])


@pytest.mark.parametrize("name", ["qemu", "kvm:v6.12", ""])
def test_an_unknown_backend_is_refused_before_anything_runs(name: str, pytester: pytest.Pytester) -> None:
    pytester.makepyfile(USES_A_VM)

    result = pytester.runpytest_inprocess("--guestmem-backend", name)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--guestmem-backend {name}: needed model, kvm, lab, model:PROFILE or lab:KERNEL" in str(result.stderr)


def test_a_run_that_uses_none_of_it_imports_none_of_it(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("""
        import sys

        def test_nothing():
            assert not [name for name in sys.modules if name.startswith(("guestmem.model", "guestmem.objects"))]
    """)

    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def example_on(backends: str) -> str:
    """What pytest says of the example there, as a user would run it."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        "/dev/null",
        "-p",
        "no:cacheprovider",
        "--guestmem-backend",
        backends,
    ]
    return subprocess.run([*command, str(EXAMPLE)], cwd=ROOT, capture_output=True, text=True).stdout


def test_the_example_passes_on_the_model() -> None:
    assert "= 8 passed in" in example_on("model,model:v6.12")


@pytest.mark.lab
def test_the_example_passes_on_the_lab() -> None:
    assert "= 4 passed in" in example_on("lab")
