"""The command line says what the hardware is, and names nothing that another process could see or leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem.lab.qemu import Bootable, Hardware, command_line, why_not_accelerated
from guestmem.units import GIB, MIB

KERNEL = Bootable(Path("/cache/vmlinux"))


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


PACKAGED = Bootable(Path("/cache/vmlinux"), Path("/cache/modules.cpio"))


def test_a_kernel_of_ours_is_told_of_its_devices_and_a_packaged_one_finds_them() -> None:
    ours = command_line(KERNEL, Hardware(host_files=True), image=7, port=8, console=9)
    packaged = command_line(PACKAGED, Hardware(host_files=True), image=7, port=8, console=9)

    assert (value(ours, "-machine"), value(packaged, "-machine")) == ("microvm,acpi=off", "microvm,acpi=on,pcie=on")
    assert {"virtio-serial-device", "virtio-9p-device"} == {each.split(",")[0] for each in ours if "virtio-" in each}
    assert {"virtio-serial-pci", "virtio-9p-pci"} == {each.split(",")[0] for each in packaged if "virtio-" in each}


def test_an_accelerated_machine_is_the_hosts_processor() -> None:
    line = arguments(Hardware(accelerated=True))
    assert (value(line, "-accel"), value(line, "-cpu")) == ("kvm", "host")


@pytest.mark.parametrize(
    ("device", "nested", "words"),
    [
        (False, "1", "no /dev/kvm"),
        (True, None, "kvm_amd is not loaded"),
        (True, "0\n", "nested virtualisation is off"),
        (True, "1\n", ""),
        (True, "Y\n", ""),
    ],
)
def test_a_host_that_cannot_accelerate_says_what_is_missing(
    tmp_path: Path, device: bool, nested: str | None, words: str
) -> None:
    parameters = tmp_path / "sys/module/kvm_amd/parameters"
    parameters.mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    if device:
        (tmp_path / "dev/kvm").touch()
    if nested is not None:
        (parameters / "nested").write_text(nested)

    assert words in why_not_accelerated(tmp_path)
    assert bool(why_not_accelerated(tmp_path)) == bool(words)
