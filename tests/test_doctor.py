"""The doctor: what a host can do, read from trees of files that hosts of all kinds have, and never guessed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from program import Guestmem

import guestmem
from guestmem.doctor import Condition, Diagnosis, HostFiles, examine
from guestmem.doctor.kvm import examine_capabilities, examine_device, examine_kernel, examine_nested, examine_paging
from guestmem.doctor.memory import examine_hugetlb, examine_thp
from guestmem.doctor.software import EXTRAS, examine_extras, examine_lab
from guestmem.errors import BackendUnavailable
from guestmem.lab.inventory import Status
from guestmem.objects import Kvm

Tree = Callable[..., HostFiles]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A host whose files are these."""

    def make(files: dict[str, str] | None = None) -> HostFiles:
        for name, text in (files or {}).items():
            path = tmp_path / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return HostFiles(tmp_path)

    return make


def unavailable() -> Kvm:
    raise BackendUnavailable("/dev/kvm cannot be opened (ENOENT): load the modules")


def model(profile: str) -> Callable[[], Kvm]:
    return lambda: guestmem.open("model", profile=profile)


def brief(findings: list[Diagnosis]) -> dict[str, tuple[str, str]]:
    return {each.subject: (each.state.value, each.found) for each in findings}


# -- kernel and device -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "state", "words"),
    [
        ("6.12.117-guestmem", Condition.OK, "modelled by profile v6.12"),
        ("6.8.0-rc1", Condition.OK, "no profile"),
        ("6.7.12", Condition.MISSING, "no profile"),
        ("6.1.0-49-amd64", Condition.MISSING, "no profile"),
        ("7.2.13", Condition.OK, "modelled by profile v7.2"),
        ("10.0.1", Condition.OK, "no profile"),
    ],
)
def test_a_kernel_is_known_by_its_release(release: str, state: Condition, words: str, tree: Tree) -> None:
    finding = examine_kernel(tree({"/proc/sys/kernel/osrelease": release + "\n"}))

    assert (finding.state, finding.values["release"]) == (state, release)
    assert words in finding.found


@pytest.mark.parametrize("text", [None, "", "strange"])
def test_a_release_that_cannot_be_read_is_unknown(text: str | None, tree: Tree) -> None:
    host = tree({} if text is None else {"/proc/sys/kernel/osrelease": text})

    assert examine_kernel(host).state is Condition.UNKNOWN


def test_a_device_that_opens_is_fine(tree: Tree) -> None:
    assert examine_device(tree({"/dev/kvm": ""})).state is Condition.OK


@pytest.mark.parametrize(
    ("refused", "remedy"), [("EACCES", "usermod -aG kvm"), ("EPERM", "--device /dev/kvm"), ("ENODEV", "modprobe")]
)
def test_a_device_that_does_not_open_is_reported_with_its_errno(
    refused: str, remedy: str, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HostFiles, "open_errno", lambda self, path: refused)

    finding = examine_device(tree({"/dev/kvm": ""}))

    assert finding.state is Condition.MISSING
    assert refused in finding.cause
    assert remedy in finding.remedy


@pytest.mark.parametrize(
    ("files", "cause", "remedy"),
    [
        ({"/proc/cpuinfo": "flags : fpu vmx sse"}, "kvm_intel is not loaded", "modprobe kvm_intel"),
        ({"/proc/cpuinfo": "flags : fpu svm sse"}, "kvm_amd is not loaded", "modprobe kvm_amd"),
        ({"/proc/cpuinfo": "flags : fpu sse"}, "neither vmx nor svm", "firmware"),
        ({"/sys/module/kvm_amd/refcnt": "0"}, "not visible here", "--device /dev/kvm"),
        ({}, "unknown", "modprobe kvm"),
    ],
)
def test_why_there_is_no_device(files: dict[str, str], cause: str, remedy: str, tree: Tree) -> None:
    finding = examine_device(tree(files))

    assert finding.state is Condition.MISSING
    assert cause in finding.cause
    assert remedy in finding.remedy


# -- capabilities ------------------------------------------------------------------------------------------------------


def test_what_a_kernel_with_private_memory_offers(tree: Tree) -> None:
    assert brief(examine_capabilities(tree(), model("v7.2"))) == {
        "vm-types": ("ok", "default, sw-protected"),
        "private": ("ok", "software-protected VMs have private memory"),
        "guest-memfd": ("ok", "default: yes, MMAP, INIT_SHARED; sw-protected: yes, MMAP"),
        "pre-fault": ("ok", "KVM_PRE_FAULT_MEMORY"),
    }


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        (None, "cannot be read"),
        ("CONFIG_KVM=y\n", "built without CONFIG_KVM_SW_PROTECTED_VM"),
        ("CONFIG_KVM_SW_PROTECTED_VM=y\n", "has CONFIG_KVM_SW_PROTECTED_VM, but"),
    ],
)
def test_why_a_kernel_has_no_private_memory(config: str | None, cause: str, tree: Tree) -> None:
    files = {"/proc/sys/kernel/osrelease": "6.18.44"}
    if config is not None:
        files["/boot/config-6.18.44"] = config

    [private] = [each for each in examine_capabilities(tree(files), model("v6.18")) if each.subject == "private"]

    assert private.state is Condition.MISSING
    assert cause in private.cause


def test_a_packed_configuration_is_read_too(tree: Tree, tmp_path: Path) -> None:
    host = tree({"/proc/empty": ""})
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_KVM_SW_PROTECTED_VM=y\n"))

    assert host.config("KVM_SW_PROTECTED_VM") == "y"
    assert host.config("KVM_AMD") == "n"


def test_without_the_device_nothing_is_said_about_capabilities(tree: Tree) -> None:
    found = examine_capabilities(tree(), unavailable)

    assert [each.state for each in found] == [Condition.UNKNOWN] * 4
    assert all("ENOENT" in each.cause for each in found)


# -- paging and nesting ------------------------------------------------------------------------------------------------

INTEL = "/sys/module/kvm_intel/parameters"
KVM = "/sys/module/kvm/parameters"


@pytest.mark.parametrize(
    ("files", "state", "words"),
    [
        ({f"{INTEL}/ept": "Y", f"{KVM}/nx_huge_pages": "N"}, Condition.OK, "ept is on"),
        ({f"{INTEL}/ept": "Y", f"{KVM}/nx_huge_pages": "Y"}, Condition.LIMITED, "iTLB multihit"),
        ({f"{INTEL}/ept": "N"}, Condition.MISSING, "shadow paging"),
        ({"/sys/module/kvm_amd/parameters/npt": "1"}, Condition.OK, "npt is on"),
        ({}, Condition.UNKNOWN, "cannot be read"),
    ],
)
def test_paging_is_what_the_modules_parameters_say(
    files: dict[str, str], state: Condition, words: str, tree: Tree
) -> None:
    finding = examine_paging(tree(files))

    assert finding.state is state
    assert words in finding.found + finding.cause


@pytest.mark.parametrize(("value", "state"), [("Y", "ok"), ("1", "ok"), ("N", "limited"), ("0", "limited")])
def test_nesting_is_what_the_modules_parameters_say(value: str, state: str, tree: Tree) -> None:
    assert examine_nested(tree({f"{INTEL}/nested": value})).state == state
    assert examine_nested(HostFiles(Path("/nowhere"))).state is Condition.UNKNOWN


# -- huge pages --------------------------------------------------------------------------------------------------------

POOLS = "/sys/kernel/mm/hugepages"
THP = "/sys/kernel/mm/transparent_hugepage"


@pytest.mark.parametrize(
    ("pages", "free", "state", "found"),
    [
        ("512", "12", Condition.OK, "2M: 512, 12 free; 1G: 0, 0 free"),
        ("0", "0", Condition.LIMITED, "2M: 0, 0 free; 1G: 0, 0 free"),
    ],
)
def test_pools_are_counted_by_page_size(pages: str, free: str, state: Condition, found: str, tree: Tree) -> None:
    files = {
        f"{POOLS}/hugepages-2048kB/nr_hugepages": pages,
        f"{POOLS}/hugepages-2048kB/free_hugepages": free,
        f"{POOLS}/hugepages-1048576kB/nr_hugepages": "0",
        f"{POOLS}/hugepages-1048576kB/free_hugepages": "0",
    }

    finding = examine_hugetlb(tree(files))

    assert (finding.state, finding.found) == (state, found)


def test_a_host_without_pools_is_unknown_not_empty(tree: Tree) -> None:
    assert examine_hugetlb(tree()).state is Condition.UNKNOWN


@pytest.mark.parametrize(
    ("enabled", "shmem", "state", "remedy"),
    [
        ("always [madvise] never", "always within_size [advise] never deny force", Condition.OK, ""),
        ("[always] madvise never", "[always] within_size advise never deny force", Condition.OK, ""),
        ("always madvise [never]", "[always] never", Condition.LIMITED, f"as root: echo madvise > {THP}/enabled"),
        ("[always] never", "advise [never] deny", Condition.LIMITED, f"as root: echo advise > {THP}/shmem_enabled"),
    ],
)
def test_transparent_huge_pages_are_as_set(enabled: str, shmem: str, state: Condition, remedy: str, tree: Tree) -> None:
    finding = examine_thp(tree({f"{THP}/enabled": enabled, f"{THP}/shmem_enabled": shmem}))

    assert (finding.state, finding.remedy) == (state, remedy)


def test_a_kernel_without_transparent_huge_pages_is_unknown(tree: Tree) -> None:
    assert examine_thp(tree()).state is Condition.UNKNOWN


# -- lab and extras ----------------------------------------------------------------------------------------------------


def test_what_the_lab_lacks_is_named_with_its_remedy() -> None:
    nothing = Status("", "/cache", (), (), (), ("flex", "bison"), 0)

    finding = examine_lab(nothing)

    assert finding.state is Condition.LIMITED
    assert finding.cause == "no QEMU, no kernel is built"
    assert finding.remedy == "apt install qemu-system-x86; apt install flex bison; guestmem lab build"


@pytest.mark.parametrize(
    ("there", "state", "remedy"),
    [
        (set(EXTRAS), Condition.OK, ""),
        (set(EXTRAS) - {"proofs"}, Condition.LIMITED, "pip install 'guestmem[proofs]'"),
        (set(), Condition.LIMITED, "pip install 'guestmem[cluster,exec,fuzz,proofs,qemu,traces]'"),
    ],
)
def test_extras_that_are_not_installed_are_named(there: set[str], state: Condition, remedy: str) -> None:
    modules = {EXTRAS[name][0] for name in there}

    finding = examine_extras(lambda module: module in modules)

    assert (finding.state, finding.remedy) == (state, remedy)


# -- together ----------------------------------------------------------------------------------------------------------


def test_a_host_of_which_nothing_can_be_read_is_unknown(tmp_path: Path) -> None:
    read = ("kernel", "paging", "nested", "hugetlb", "thp")

    states = {each.subject: each.state for each in examine(HostFiles(tmp_path))}

    assert [states[subject] for subject in read] == [Condition.UNKNOWN] * len(read)


def test_every_finding_that_is_not_fine_has_a_cause() -> None:
    for finding in examine():
        assert finding.state is Condition.OK or finding.cause, finding


def test_the_command_ends_with_1_where_something_is_missing(
    guestmem_command: Guestmem, monkeypatch: pytest.MonkeyPatch
) -> None:
    fine = Diagnosis("kernel", Condition.OK, "Linux")
    limited = Diagnosis("thp", Condition.LIMITED, "never", "never", "echo")
    lost = Diagnosis("device", Condition.MISSING, "there is no /dev/kvm", "no module", "modprobe")
    for findings, code in (([fine], 0), ([fine, limited], 0), ([fine, lost], 1)):
        monkeypatch.setattr("guestmem.doctor.examine", lambda findings=findings: findings)
        assert guestmem_command("doctor").code == code

    text, values = guestmem_command("doctor").out, json.loads(guestmem_command("doctor", "--json").out)

    assert text.splitlines() == [
        "ok       kernel       Linux",
        "missing  device       there is no /dev/kvm",
        "                      because: no module",
        "                      change:  modprobe",
    ]
    assert [each["state"] for each in values["findings"]] == ["ok", "missing"]
    assert list(values["findings"][1]) == ["subject", "state", "found", "cause", "remedy", "values"]
