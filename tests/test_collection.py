"""The suite's own rules: what cannot run here is counted and not collected, and nothing skips on the model."""

from __future__ import annotations

import re
from pathlib import Path

import conftest
import pytest

pytest_plugins = ["pytester"]
TESTS = Path(conftest.__file__).parent

PROMISES = """
    import pytest
    import guestmem

    @pytest.mark.parametrize("profile", ["v6.12", "v6.18", "v7.2"])
    def test_of_three_kernels(kvm, profile):
        assert kvm.backend

    def test_of_the_newest(kvm):
        assert kvm.backend

    @pytest.mark.lab
    def test_that_boots():
        raise AssertionError("needs a machine")
"""


@pytest.fixture
def suite(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite with this one's conftest, on a machine whose KVM is of 6.18; no descriptor of it is opened."""
    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.setattr("realkernels.profile_of_kvm", lambda: ("v6.18", "Linux 6.18.1"))
    monkeypatch.setattr("realkernels.hold", lambda backend: backend)
    pytester.makeini("[pytest]\nmarkers = lab: boots a machine\n")
    pytester.makeconftest((TESTS / "conftest.py").read_text().replace('guestmem.open("kvm")', "guestmem.open()"))
    return pytester


def test_only_what_can_run_is_collected_and_the_rest_counted_once_for_each_backend(suite: pytest.Pytester) -> None:
    suite.makepyfile(PROMISES)

    result = suite.runpytest_inprocess("-v")

    assert sorted(re.findall(r"::test_(\S+) PASSED", result.stdout.str())) == [
        "of_the_newest[model]",
        "of_three_kernels[kvm-v6.18]",
        "of_three_kernels[model-v6.12]",
        "of_three_kernels[model-v6.18]",
        "of_three_kernels[model-v7.2]",
    ]
    result.assert_outcomes(passed=5)
    result.stdout.no_fnmatch_line("*deselected*")
    assert [line for line in result.outlines if line.startswith("not collected on")] == [
        "not collected on kvm: 3 tests (they are about other kernels than Linux 6.18.1)",
        "not collected on lab: 5 tests (not asked for: make test-lab)",
    ]


ASKS = """
    import guestmem
    import pytest
    from guestmem.errors import KvmError
    from helpers import named

    pytestmark = pytest.mark.parametrize("profile", ["v6.18"])

    def test_state(kvm):
        raise guestmem.NotVisible("its state")

    def test_named(kvm):
        named(KvmError(22))

    def test_skip(kvm):
        pytest.skip("not today")

    def test_wrong(kvm):
        raise ValueError("wrong")

    def test_of_no_backend(profile):
        raise guestmem.NotVisible("its state")
"""


def test_what_a_real_kernel_may_skip_fails_on_the_model(suite: pytest.Pytester) -> None:
    suite.makepyfile(ASKS)

    result = suite.runpytest_inprocess("-v")

    assert dict(re.findall(r"::test_(\S+) (SKIPPED|FAILED)", result.stdout.str())) == {
        **{f"{name}[model-v6.18]": "FAILED" for name in ("state", "named", "skip", "wrong")},
        **{f"{name}[kvm-v6.18]": "SKIPPED" for name in ("state", "named", "skip")},
        "wrong[kvm-v6.18]": "FAILED",
        "of_no_backend[v6.18]": "FAILED",
    }


def test_reasons_to_skip_are_summed_up(suite: pytest.Pytester) -> None:
    suite.makepyfile("""
        import pytest

        @pytest.mark.parametrize("n", range(3))
        def test_with_a_browser(n):
            pytest.skip("chromium is not installed")

        @pytest.mark.skipif(True, reason="no qemu")
        def test_with_a_machine():
            pass
    """)

    result = suite.runpytest_inprocess()

    result.stdout.fnmatch_lines(["3 skipped: chromium is not installed", "1 skipped: no qemu"])
