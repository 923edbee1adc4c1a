"""The package's names are there when they are used, and cost nothing before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import guestmem
from guestmem import lab


@pytest.mark.parametrize("name", lab.__all__)
def test_every_public_name_is_there_also_a_second_time(name: str) -> None:
    assert getattr(lab, name) is getattr(lab, name)
    assert getattr(lab, name).__class__.__name__ != "module"


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lab.nothing  # noqa: B018


def test_importing_the_package_imports_nothing_of_the_hosts_half() -> None:
    code = "import sys, guestmem.lab; print([name for name in sys.modules if name.startswith('guestmem.lab.')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_a_lab_that_is_not_built_is_unavailable_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GUESTMEM_CACHE", str(tmp_path))
    with pytest.raises(guestmem.BackendUnavailable, match=r"guestmem lab build --kernel 6\.12"):
        guestmem.open("lab")


def test_a_real_kernel_is_not_told_what_it_is() -> None:
    with pytest.raises(ValueError, match="model's"):
        guestmem.open("lab", profile="v6.12")
