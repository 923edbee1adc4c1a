"""``guestmem lab``: exit codes, one-line errors, the shape of --json. Kernel and QEMU are stand-ins."""

from __future__ import annotations

import json
import os
from pathlib import Path

import fake_tools
import pytest
from fake_lab import fake_machine
from program import Guestmem, runner

from guestmem.doctor.software import examine_lab
from guestmem.lab import inventory, programs
from guestmem.lab.errors import LabFailed
from guestmem.lab.machine import LabMachine
from guestmem.lab.qemu import Hardware
from guestmem.units import GIB


@pytest.fixture
def guestmem(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Guestmem:
    """Run `guestmem lab` with these arguments."""

    return runner(monkeypatch, capfd, "lab")


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the stand-ins for what builds a kernel."""
    return fake_tools.lay_out(tmp_path, monkeypatch)


def one_line(text: str) -> str:
    """The line of an error."""
    (line,) = text.splitlines()
    assert line.startswith("guestmem: ")
    return line


# -- build and what there is -----------------------------------------------------------------------------------------


def test_build_tells_its_stages_and_then_the_kernel(guestmem: Guestmem, fake: Path) -> None:
    ended = guestmem("build", "--kernel", str(fake / "linux.tar.gz"))

    assert ended.code == 0
    assert ended.err.splitlines() == ["fetch", "wait", "unpack", "configure", "compile", "install"]
    assert ended.out.startswith("6.12.9-guestmem, built in ")
    assert Path(ended.out.split()[-1]).read_text() == "kernel\n"


def test_an_option_that_the_source_does_not_offer_is_told(guestmem: Guestmem, fake: Path) -> None:
    (fake / "drop").write_text("CONFIG_MEMORY_FAILURE")

    ended = guestmem("build", "--kernel", str(fake / "linux.tar.gz"))

    assert (ended.code, "does not offer CONFIG_MEMORY_FAILURE" in ended.err) == (0, True)


def test_a_failed_build_is_exit_1_with_the_reason_on_the_last_line(guestmem: Guestmem, fake: Path) -> None:
    (fake / "fail").write_text("mm/slub.c:1:1: error: no such thing\nmake: *** [all] Error 1\n")

    ended = guestmem("build", "--kernel", str(fake / "linux.tar.gz"))

    assert (ended.code, ended.out) == (1, "")
    assert "mm/slub.c:1:1: error: no such thing; the whole log is " in one_line(ended.err.splitlines()[-1])


def test_missing_tools_are_exit_4_and_named(guestmem: Guestmem, fake: Path) -> None:
    (fake / "bin" / "bison").unlink()

    ended = guestmem("build", "--kernel", str(fake / "linux.tar.gz"))

    assert (ended.code, ended.out) == (4, "")
    assert ended.err.endswith("apt install bison\n")


@pytest.mark.parametrize("arguments", [("build", "--kernel", "/nowhere"), ("exec", "--memory", "much", "--", "true")])
def test_bad_usage_is_exit_2(guestmem: Guestmem, fake: Path, arguments: tuple[str, ...]) -> None:
    ended = guestmem(*arguments)

    assert (ended.code, ended.out) == (2, "")
    assert one_line(ended.err.splitlines()[-1])


def test_status_is_exit_1_until_a_lab_can_be_booted(guestmem: Guestmem, fake: Path) -> None:
    (fake / "bin" / "flex").unlink()
    before = guestmem("status")
    assert before.code == 1
    assert "apt install flex" in before.out
    assert before.out.splitlines()[-1].split() == ["ready", "no"]

    (fake / "bin" / "flex").write_text("#!/bin/sh\n")
    (fake / "bin" / "flex").chmod(0o755)
    (fake / "bin" / "qemu-system-x86_64").write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\n")
    (fake / "bin" / "qemu-system-x86_64").chmod(0o755)
    guestmem("build", "--kernel", str(fake / "linux.tar.gz"))
    after = guestmem("status")
    assert (after.code, after.err) == (0, "")
    assert after.out.splitlines()[-1].split() == ["ready", "yes"]


def test_status_as_json_says_the_same(guestmem: Guestmem, fake: Path) -> None:
    guestmem("build", "--kernel", str(fake / "linux.tar.gz"))
    ended = guestmem("status", "--json")

    found = json.loads(ended.out)
    assert set(found) == {
        "format", "ready", "qemu", "directory", "kernels", "usable", "unfinished", "missing_tools", "size", "damaged"
    }  # fmt: skip
    assert (found["ready"], found["qemu"], found["missing_tools"], found["unfinished"]) == (False, "", [], [])
    (kernel,) = found["kernels"]
    assert found["usable"] == [kernel["key"]]
    assert (kernel["release"], kernel["spec"]) == ("6.12.9-guestmem", str(fake / "linux.tar.gz"))


def test_a_truncated_kernel_is_not_ready_and_everybody_says_what_to_do(guestmem: Guestmem, fake: Path) -> None:
    """The stand-in of the kernel has 7 bytes."""
    (fake / "bin" / "qemu-system-x86_64").write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\n")
    (fake / "bin" / "qemu-system-x86_64").chmod(0o755)
    archive = str(fake / "linux.tar.gz")
    image = Path(guestmem("build", "--kernel", archive).out.split()[-1])
    os.truncate(image, 3)

    status = guestmem("status")
    assert (status.code, status.out.splitlines()[-1].split()) == (1, ["ready", "no"])
    assert f"; damaged, vmlinux has 3 bytes of 7: guestmem lab build --kernel {archive}\n" in status.out
    booted = guestmem("exec", "--kernel", archive, "true")
    assert (booted.code, booted.out) == (4, "")
    assert "is damaged: vmlinux has 3 bytes of 7; run: guestmem lab build --kernel" in one_line(booted.err)
    finding = examine_lab(inventory.status())
    assert (finding.cause, finding.remedy) == (
        "the kernel is damaged: vmlinux has 3 bytes of 7",
        "guestmem lab build",
    )
    assert guestmem("build", "--kernel", archive).code == 0
    assert (image.read_text(), guestmem("status").code) == ("kernel\n", 0)


def test_clean_says_what_it_freed_and_a_second_time_nothing(guestmem: Guestmem, fake: Path) -> None:
    guestmem("build", "--kernel", str(fake / "linux.tar.gz"))

    assert guestmem("clean").code == 0
    assert guestmem("clean") == (0, "0 MB freed\n", "")
    assert guestmem("status").out.count("kernel    none") == 1


# -- programs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def booted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Hardware]]:
    """A lab that is a process here; what was asked for."""
    asked = []

    def boot(kernel: str, hardware: Hardware) -> LabMachine:
        asked.append((kernel, hardware))
        return fake_machine()

    monkeypatch.setattr(programs, "boot", boot)
    return asked


def test_exec_ends_as_its_command_and_passes_its_output(guestmem: Guestmem, booted: list[tuple[str, Hardware]]) -> None:
    assert guestmem("exec", "--", "sh", "-c", "echo out; echo err >&2; exit 7") == (7, "out\n", "err\n")
    assert booted[0][0] == "6.12"


def test_options_after_the_command_are_the_commands(guestmem: Guestmem, booted: list[tuple[str, Hardware]]) -> None:
    assert guestmem("exec", "echo", "--kernel", "-h") == (0, "--kernel -h\n", "")
    assert len(booted) == 1


def test_memory_and_kernel_arguments_are_the_labs(guestmem: Guestmem, booted: list[tuple[str, Hardware]]) -> None:
    guestmem("exec", "--kernel", "6.13", "--memory", "3G", "--append", "hugepagesz=1G hugepages=1", "true")

    assert booted == [("6.13", Hardware(3 * GIB, 1, True, ("hugepagesz=1G", "hugepages=1")))]


def test_a_command_past_its_time_is_exit_1(guestmem: Guestmem, booted: list[tuple[str, Hardware]]) -> None:
    ended = guestmem("exec", "--timeout", "0.3", "--", "sleep", "1000")

    assert (ended.code, ended.out) == (1, "")
    assert "did not end within 0.3 s" in one_line(ended.err)


def test_a_lab_that_fails_is_exit_1_with_the_consoles_last_line(
    guestmem: Guestmem, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> LabMachine:
        raise LabFailed("QEMU ended with 0", "Run /init as init process\nKernel panic - not syncing: no init\n")

    monkeypatch.setattr(programs, "boot", fail)
    ended = guestmem("exec", "true")

    assert (ended.code, ended.out) == (1, "")
    assert one_line(ended.err).endswith("console: Kernel panic - not syncing: no init")


def test_a_lab_that_is_not_built_is_exit_4_and_says_what_to_do(guestmem: Guestmem, fake: Path) -> None:
    ended = guestmem("exec", "true")

    assert (ended.code, ended.out) == (4, "")
    assert one_line(ended.err).endswith("run: guestmem lab build --kernel 6.12")


def test_ctrl_c_ends_the_lab_and_is_130(guestmem: Guestmem, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> LabMachine:
        raise KeyboardInterrupt

    monkeypatch.setattr(programs, "boot", interrupted)
    assert guestmem("exec", "true")[:2] == (130, "")


def test_a_shell_without_a_terminal_is_exit_2(
    guestmem: Guestmem, booted: list[tuple[str, Hardware]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.isatty", lambda fd: False)
    ended = guestmem("shell")

    assert (ended.code, booted) == (2, [])
    assert "guestmem lab exec" in one_line(ended.err)
