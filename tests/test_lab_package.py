"""A distribution's kernel package becomes a kernel of the lab: its image, and its modules in the order of loading."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from guestmem.errors import BackendUnavailable
from guestmem.lab import cache
from guestmem.lab.cpio import CpioWriter
from guestmem.lab.errors import BuildFailed
from guestmem.lab.inventory import status
from guestmem.lab.kernel import bootable, build, built
from guestmem.lab.package import is_package_name, is_package_path, read_package, write_modules

RELEASE = "6.12.117+deb13-cloud-amd64"
NEEDS = {"irqbypass": "", "kvm": "irqbypass", "kvm-amd": "kvm,ccp", "9pnet": "", "9pnet_virtio": "9pnet", "9p": "9pnet"}


def module(name: str, depends: str) -> bytes:
    """As much of a module as is read."""
    return f"\x7fELF {name}\0license=GPL\0depends={depends}\0name={name}\0".encode()


def lay_out(tree: Path, names: tuple[str, ...] = ("irqbypass", "kvm", "kvm-amd"), place: str = "lib/modules") -> Path:
    """An unpacked package with these modules."""
    (tree / "boot").mkdir(parents=True)
    (tree / f"boot/vmlinuz-{RELEASE}").write_bytes(b"image")
    folder = tree / place / RELEASE / "kernel"
    folder.mkdir(parents=True)
    for name in names:
        (folder / f"{name}.ko.xz").write_bytes(lzma.compress(module(name, NEEDS[name])))
    return tree


def plain(modules: tuple[Path, ...]) -> list[str]:
    return [path.name.partition(".")[0] for path in modules]


@pytest.mark.parametrize(
    ("spec", "is_one"),
    [
        ("linux-image-6.18.15+deb13-cloud-amd64", True),
        ("linux-image-cloud-amd64", True),
        ("linux-source-6.12", False),
        ("6.12", False),
        ("./linux-image-6.12", False),
        ("linux-image-", False),
    ],
)
def test_a_packages_name_is_no_version_and_no_path(spec: str, is_one: bool) -> None:
    assert is_package_name(spec) is is_one


def test_a_source_tree_is_no_package_even_with_one_in_it(tmp_path: Path) -> None:
    (tmp_path / "linux-image.deb").touch()
    assert is_package_path(tmp_path)
    (tmp_path / "Kconfig").touch()
    assert not is_package_path(tmp_path)


def test_modules_follow_those_that_they_need_and_built_in_ones_are_left_out(tmp_path: Path) -> None:
    found = read_package(lay_out(tmp_path))

    assert (found.release, found.image.read_bytes()) == (RELEASE, b"image")
    assert plain(found.modules) == ["irqbypass", "kvm", "kvm-amd"]
    assert not found.host_files


@pytest.mark.parametrize("place", ["lib/modules", "usr/lib/modules"])
def test_programs_of_the_host_run_where_there_is_9p(tmp_path: Path, place: str) -> None:
    found = read_package(lay_out(tmp_path, tuple(NEEDS), place))

    assert found.host_files
    assert plain(found.modules) == ["irqbypass", "kvm", "kvm-amd", "9pnet", "9pnet_virtio", "9p"]


def test_what_is_built_in_is_there(tmp_path: Path) -> None:
    tree = lay_out(tmp_path, ("irqbypass", "kvm", "kvm-amd"))
    (tree / "lib/modules" / RELEASE / "modules.builtin").write_text(
        "kernel/net/9p/9pnet_virtio.ko\nkernel/fs/9p/9p.ko\n"
    )

    assert read_package(tree).host_files


def test_the_image_of_a_split_package_is_among_the_modules(tmp_path: Path) -> None:
    tree = lay_out(tmp_path, place="usr/lib/modules")
    (tree / f"boot/vmlinuz-{RELEASE}").rename(tree / "usr/lib/modules" / RELEASE / "vmlinuz")

    assert read_package(tree).release == RELEASE


@pytest.mark.parametrize(("line", "without"), [("=y", ()), ("=n", ("CONFIG_KVM_SW_PROTECTED_VM",))])
def test_its_configuration_says_whether_there_are_software_protected_vms(
    tmp_path: Path, line: str, without: tuple[str, ...]
) -> None:
    tree = lay_out(tmp_path)
    (tree / f"boot/config-{RELEASE}").write_text(f"CONFIG_KVM=m\nCONFIG_KVM_SW_PROTECTED_VM{line}\nCONFIG_X=y\n")

    assert read_package(tree).without == without


def test_an_image_without_kvm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match="no kvm-amd: no KVM for AMD processors, or its modules are elsewhere"):
        read_package(lay_out(tmp_path, ("irqbypass", "kvm")))


def test_a_package_without_an_image_says_where_the_image_is(tmp_path: Path) -> None:
    with pytest.raises(BuildFailed, match=r"no kernel image .*linux-binary-\* and the modules in linux-modules-\*"):
        read_package(tmp_path)


@pytest.mark.parametrize(
    ("suffix", "contents", "words"),
    [(".ko.zst", b"(\xb5/\xfd", "read as .ko, .ko.xz and .ko.gz"), (".ko.xz", b"\xfd7zXZ\0half", "damaged")],
)
def test_a_module_that_cannot_be_read_is_named(tmp_path: Path, suffix: str, contents: bytes, words: str) -> None:
    tree = lay_out(tmp_path, ("irqbypass", "kvm"))
    (tree / "lib/modules" / RELEASE / f"kernel/kvm-amd{suffix}").write_bytes(contents)

    with pytest.raises(BuildFailed, match=rf"kvm-amd{suffix}.*{words}"):
        read_package(tree)


def test_the_archive_holds_the_modules_uncompressed_and_numbered(tmp_path: Path) -> None:
    paths = []
    for name, pack in (("b.ko.xz", lzma.compress), ("a.ko.gz", gzip.compress), ("kvm-amd.ko", bytes)):
        (tmp_path / name).write_bytes(pack(name.encode()))
        paths.append(tmp_path / name)
    write_modules(tuple(paths), tmp_path / "out")

    wanted = io.BytesIO()
    archive = CpioWriter(wanted)
    for name, contents in (("00-b", b"b.ko.xz"), ("01-a", b"a.ko.gz"), ("02-kvm_amd", b"kvm-amd.ko")):
        archive.file(f"modules/{name}.ko", contents)
    archive.finish()
    assert (tmp_path / "out").read_bytes() == wanted.getvalue()


# -- in the cache ------------------------------------------------------------------------------------------------------

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GUESTMEM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def deb(tree: Path, out: Path, name: str, depends: str = "") -> Path:
    """A real package of what is in a tree."""
    (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
    fields = (
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody <n@example.org>\nDescription: none\n"
    )
    (tree / "DEBIAN/control").write_text(fields + (f"Depends: {depends}\n" if depends else ""))
    subprocess.run(["dpkg-deb", "--build", str(tree), str(out)], check=True, capture_output=True)
    return out


def test_an_unpacked_package_is_booted_with_its_modules(empty_cache: Path) -> None:
    tree = lay_out(empty_cache / "tree")
    kernel = build(str(tree))

    assert (kernel.spec, kernel.release, kernel.is_packaged, kernel.host_files) == (str(tree), RELEASE, True, False)
    found = bootable(str(tree))
    assert found.image.read_bytes() == b"image"
    assert found.modules is not None
    assert b"modules/02-kvm_amd.ko" in found.modules.read_bytes()
    assert list((cache.directory() / "work").glob("*/")) == []


def test_a_package_that_changed_is_read_again(empty_cache: Path) -> None:
    tree = lay_out(empty_cache / "tree")
    build(str(tree))
    (tree / f"boot/vmlinuz-{RELEASE}").write_bytes(b"newer")
    build(str(tree))

    assert bootable(str(tree)).image.read_bytes() == b"newer"


def test_a_package_whose_modules_are_damaged_is_not_booted(empty_cache: Path) -> None:
    tree = lay_out(empty_cache / "tree")
    kernel = build(str(tree))
    assert status().usable == (kernel.key,)
    assert kernel.bootable.modules is not None
    kernel.bootable.modules.write_bytes(b"")

    assert status().damaged == {kernel.key: f"modules.cpio has 0 bytes of {kernel.modules_size:,}"}
    with pytest.raises(BackendUnavailable, match="damaged: modules"):
        bootable(str(tree))


def test_a_tree_without_a_kernel_leaves_nothing_behind(empty_cache: Path) -> None:
    tree = lay_out(empty_cache / "tree", ())
    with pytest.raises(BuildFailed):
        build(str(tree))

    assert built() == []
    assert status().unfinished == ()


@needs_dpkg
def test_the_files_of_a_split_package_are_read_together(empty_cache: Path) -> None:
    image, modules = lay_out(empty_cache / "a"), empty_cache / "b"
    shutil.copytree(image / "lib", modules / "lib")
    shutil.rmtree(image / "lib")
    debs = empty_cache / "debs"
    debs.mkdir()
    one = deb(image, debs / "linux-binary.deb", "linux-binary-x")
    deb(modules, debs / "linux-modules.deb", "linux-modules-x")

    assert build(str(debs)).release == RELEASE
    with pytest.raises(BuildFailed, match="its modules are elsewhere"):
        build(str(one))


@needs_dpkg
def test_a_file_that_is_no_package_is_named(empty_cache: Path) -> None:
    (empty_cache / "thing.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(BuildFailed, match=r"thing\.deb cannot be read"):
        build(str(empty_cache / "thing.deb"))


@needs_dpkg
def test_a_package_by_name_is_fetched_once_with_what_it_depends_on(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """apt-get is a stand-in that copies what it is asked for, and writes down what that was."""
    mirror, tools = empty_cache / "mirror", empty_cache / "bin"
    mirror.mkdir()
    tools.mkdir()
    deb(lay_out(empty_cache / "real"), mirror / "linux-binary-x.deb", "linux-binary-x", "libc6")
    deb(empty_cache / "meta", mirror / "linux-image-x.deb", "linux-image-x", "kmod, linux-binary-x (= 1)")
    (tools / "apt-get").write_text(f'#!/bin/sh\necho "$2" >> {tools}/asked\ncp {mirror}/"$2".deb .\n')
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools), prepend=":")

    first, again = build("linux-image-x"), build("linux-image-x")

    assert first == again
    assert (tools / "asked").read_text().split() == ["linux-image-x", "linux-binary-x"]
    assert bootable("linux-image-x").image.read_bytes() == b"image"
