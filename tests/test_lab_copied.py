"""A tree that was built in is copied: its source and nothing else, and only what changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import fake_tools
import pytest

from guestmem.lab.copied import is_clean, update
from guestmem.lab.kernel import build

SOURCE = {"Kconfig": "mainmenu", "Makefile": "all:", "virt/kvm/kvm_main.c": "int x;"}
PRODUCTS = (".config", "virt/kvm/kvm_main.o", "vmlinux.a", "virt/kvm/.kvm_main.o.cmd")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source with what a build left in it."""
    tree = tmp_path / "tree"
    for name, text in (*SOURCE.items(), *((name, "made") for name in PRODUCTS)):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "include").symlink_to("virt")
    return tree


def files(tree: Path) -> set[str]:
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if not path.is_dir() and ".git" not in path.parts}


@pytest.mark.parametrize("name", [".config", "include/config/auto.conf", "arch/x86/include/generated/x.h"])
def test_a_tree_is_not_clean_where_the_kernels_make_says_so(tmp_path: Path, name: str) -> None:
    assert is_clean(tmp_path)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).touch()
    assert not is_clean(tmp_path)


def test_what_a_build_leaves_stays_behind(tree: Path, tmp_path: Path) -> None:
    """.config goes along: make mrproper removes it from the copy."""
    update(tree, tmp_path / "copy")

    assert files(tmp_path / "copy") == {*SOURCE, ".config"}
    assert (tmp_path / "copy/include").readlink() == Path("virt")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_says_what_is_source(tree: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tree], check=True)
    (tree / ".gitignore").write_text("*.o\n*.cmd\n*.a\n.config\n")
    subprocess.run(["git", "-C", tree, "add", "Makefile"], check=True)
    subprocess.run(["git", "-C", tree, "add", "Kconfig"], check=True)
    (tree / "Kconfig").unlink()  # known to git, but gone
    update(tree, tmp_path / "copy")

    assert files(tmp_path / "copy") == {"Makefile", "virt/kvm/kvm_main.c", ".gitignore"}
    assert (tmp_path / "copy/include").readlink() == Path("virt")


def test_only_what_changed_is_written_again(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    update(tree, copy)
    before = {name: (copy / name).stat().st_ino for name in SOURCE}
    (tree / "Makefile").write_text("changed:")
    (tree / "Kconfig").unlink()
    (tree / "new.c").write_text("int y;")
    update(tree, copy)

    assert files(copy) == {"Makefile", "virt/kvm/kvm_main.c", "new.c", ".config"}
    assert (copy / "Makefile").read_text() == "changed:"
    assert (copy / "virt/kvm/kvm_main.c").stat().st_ino == before["virt/kvm/kvm_main.c"]
    assert (copy / "virt/kvm/kvm_main.c").stat().st_mtime_ns == (tree / "virt/kvm/kvm_main.c").stat().st_mtime_ns


def test_a_tree_that_was_built_in_is_built_from_the_copy_and_not_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_tools.lay_out(tmp_path, monkeypatch)
    tree = fake / "linux"
    (tree / ".config").write_text("CONFIG_X=y\n")
    before = {path: path.stat().st_mtime_ns for path in (tree, *tree.rglob("*"))}

    assert build(str(tree)).image.read_text() == "kernel\n"

    made = (fake / "made").read_text().splitlines()
    assert made[0].endswith("/source mrproper")
    assert not any(f"-C {tree} " in line for line in made)
    assert {path: path.stat().st_mtime_ns for path in (tree, *tree.rglob("*"))} == before
