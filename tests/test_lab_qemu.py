"""The command line says what the hardware is, and names nothing that another process could see or leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem.lab.qemu import Hardware, command_line
from guestmem.units import GIB, MIB

KERNEL = Path("/cache/vmlinux")


def arguments(hardware: Hardware) -> list[str]:
    return command_line(KERNEL, hardware, image=7, port=8, console=9)


def value(line: list[str], option: str) -> str:
    assert line.count(option) == 1
    return line[line.index(option) + 1]


def test_it_is_emulation_of_a_processor_with_nested_svm_and_four_level_tables() -> None:
    line = arguments(Hardware())
    assert value(line, "-accel").startswith("tcg,")
    assert value(line, "-cpu") == "max,la57=off"
    assert not [argument for argument in line if "kvm" in argument]


def test_everything_it_gets_is_an_inherited_descriptor() -> None:
    line = arguments(Hardware(host_files=True))
    assert value(line, "-initrd") == "/proc/self/fd/7"
    assert [argument for argument in line if argument.startswith("socket,")] == [
        "socket,id=console,fd=9",
        "socket,id=port,fd=8",
    ]
    assert [argument for argument in line if "path=" in argument] == [value(line, "-fsdev")]


@pytest.mark.parametrize(("memory", "written"), [(2 * GIB, "2048M"), (512 * MIB, "512M"), (3 * GIB + MIB, "3073M")])
def test_memory_and_processors_are_as_asked(memory: int, written: str) -> None:
    line = arguments(Hardware(memory=memory, cpus=3))
    assert (value(line, "-m"), value(line, "-smp")) == (written, "3")


def test_the_hosts_files_are_lent_read_only_and_only_when_asked() -> None:
    assert not [argument for argument in arguments(Hardware()) if "9p" in argument or "path=" in argument]
    assert {"path=/", "readonly=on"} <= set(value(arguments(Hardware(host_files=True)), "-fsdev").split(","))


def test_kernel_arguments_are_the_kernels_and_not_its_first_process() -> None:
    append = value(arguments(Hardware(kernel_arguments=("hugepagesz=1G", "hugepages=1"))), "-append")
    assert append.endswith(" hugepagesz=1G hugepages=1")
    assert "--" not in append.split(), "QEMU appends its devices after them"


def test_the_kernel_gets_the_rate_of_its_clock_where_that_is_known() -> None:
    line = command_line(KERNEL, Hardware(), image=7, port=8, console=9, tsc_khz=2600000)
    assert "tsc_early_khz=2600000" in value(line, "-append").split()
    assert "tsc_early_khz" not in value(arguments(Hardware()), "-append")


def test_a_panic_is_the_end_of_qemu() -> None:
    line = arguments(Hardware())
    assert "-no-reboot" in line
    assert {"panic=-1", "oops=panic"} <= set(value(line, "-append").split())
