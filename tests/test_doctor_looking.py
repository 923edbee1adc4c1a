"""The doctor on what guestmem host needs: types, symbols, capabilities, and a reader of kernel memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from guestmem.doctor import Condition, HostFiles
from guestmem.doctor.looking import examine_btf, examine_looking, examine_readers, examine_rights, examine_symbols


def host(root: Path, **files: str) -> HostFiles:
    """A host whose files are these; "/" is written as two underscores."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return HostFiles(root)


def test_types_are_there_with_vmlinuxs_and_the_modules_own(tmp_path: Path) -> None:
    assert examine_btf(host(tmp_path, sys__kernel__btf__vmlinux="x")).state is Condition.OK
    module = host(tmp_path, sys__module__kvm__initstate="live")
    assert "CONFIG_DEBUG_INFO_BTF_MODULES" in examine_btf(module).remedy
    assert examine_btf(host(tmp_path, sys__kernel__btf__kvm="x")).state is Condition.OK


def test_a_kernel_without_types_names_the_option(tmp_path: Path) -> None:
    found = examine_btf(host(tmp_path, sys__kernel__notes="x"))

    assert found.state is Condition.LIMITED
    assert "CONFIG_DEBUG_INFO_BTF" in found.remedy


@pytest.mark.parametrize(
    ("line", "state", "words"),
    [
        ("ffffffffc0609bb0 d vm_list\t[kvm]", Condition.OK, ""),
        ("0000000000000000 d vm_list\t[kvm]", Condition.LIMITED, "kptr_restrict"),
        ("ffffffff81000000 T vm_list_all", Condition.LIMITED, "CONFIG_KALLSYMS_ALL"),
    ],
)
def test_symbols_are_as_kallsyms_shows_them(line: str, state: Condition, words: str, tmp_path: Path) -> None:
    found = examine_symbols(host(tmp_path, proc__kallsyms=f"ffffffff81000000 T _text\n{line}\n"))

    assert found.state is state
    assert words in found.cause


def test_capabilities_that_are_missing_are_named_with_their_purpose(tmp_path: Path) -> None:
    everything = (1 << 41) - 1
    assert examine_rights(host(tmp_path, proc__self__status=f"CapEff:\t{everything:016x}\n")).state is Condition.OK
    without_bpf = everything & ~(1 << 39)
    found = examine_rights(host(tmp_path, proc__self__status=f"CapEff:\t{without_bpf:016x}\n"))

    assert found.state is Condition.LIMITED
    assert found.cause == "missing: CAP_BPF (loading the reader program)"
    assert "cap_bpf" in found.remedy


def test_one_reader_is_enough(tmp_path: Path) -> None:
    kcore, bpf = examine_readers(HostFiles(tmp_path), "ENOENT", None)

    assert (kcore.state, bpf.state) == (Condition.LIMITED, Condition.OK)
    assert "other reader works" in kcore.remedy


def test_lockdown_is_the_cause_where_it_refuses_both(tmp_path: Path) -> None:
    locked = host(tmp_path, sys__kernel__security__lockdown="none integrity [confidentiality]\n")

    for found in examine_readers(locked, "EPERM", "EINVAL"):
        assert "lockdown=confidentiality" in found.cause
        assert "counters" in found.remedy


def test_a_reader_that_is_not_built_in_names_its_option(tmp_path: Path) -> None:
    kcore, bpf = examine_readers(HostFiles(tmp_path), "ENOENT", "ENOSYS")

    assert "CONFIG_PROC_KCORE" in kcore.remedy
    assert "CONFIG_BPF_SYSCALL" in bpf.remedy


def test_every_subject_is_looked_at_once(tmp_path: Path) -> None:
    found = examine_looking(HostFiles(tmp_path), lambda: "EPERM", lambda: "EPERM")

    assert [each.subject for each in found] == ["btf", "symbols", "rights", "kcore", "bpf"]
    assert {each.state for each in found[:3]} == {Condition.UNKNOWN}
