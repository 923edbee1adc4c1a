"""Where a kernel's source comes from, and what the lab says it has."""

from __future__ import annotations

import shutil
from pathlib import Path

import fake_tools
import pytest

from guestmem.lab import cache
from guestmem.lab.errors import BuildFailed
from guestmem.lab.inventory import status
from guestmem.lab.kernel import build, find_kernel
from guestmem.lab.source import Archive, Tree, find_source


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the stand-ins."""
    return fake_tools.lay_out(tmp_path, monkeypatch)


@pytest.fixture
def archive(fake: Path) -> str:
    """An archive of a source."""
    return str(fake / "linux.tar.gz")


APT = '#!/bin/sh\n[ "$1" = download ] || exit 9\necho "$2" >> "$FAKE/downloaded"\n: > "$2_1_all.deb"\n'
DPKG = "#!/bin/sh\nmkdir -p usr/src && echo source > usr/src/linux-source-6.12.tar.xz\n"


@pytest.fixture
def debian(fake: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, script in (("apt-get", APT), ("dpkg-deb", DPKG)):
        (fake / "bin" / name).write_text(script)
        (fake / "bin" / name).chmod(0o755)
    monkeypatch.setattr("guestmem.lab.source._INSTALLED", fake / "src")
    return fake


def test_a_version_is_downloaded_once_and_kept(debian: Path) -> None:
    found = find_source("6.12")
    assert found == find_source("6.12")
    assert isinstance(found, Archive)
    assert found.path.read_text() == "source\n"
    assert (debian / "downloaded").read_text().splitlines() == ["linux-source-6.12"]
    assert [path.name for path in (cache.directory() / "sources").iterdir()] == ["linux-source-6.12.tar.xz"]


def test_an_installed_package_is_used_where_it_is(debian: Path) -> None:
    (debian / "src").mkdir()
    (debian / "src" / "linux-source-6.12.tar.xz").touch()
    assert find_source("6.12") == Archive(debian / "src" / "linux-source-6.12.tar.xz")
    assert not (debian / "downloaded").exists()


def test_a_download_that_fails_says_why_and_leaves_nothing(debian: Path) -> None:
    (debian / "bin" / "apt-get").write_text("#!/bin/sh\necho E: Unable to locate package >&2\nexit 100\n")
    with pytest.raises(BuildFailed, match="Unable to locate package"):
        find_source("6.12")
    assert list((cache.directory() / "sources").iterdir()) == []


def test_without_apt_a_path_is_asked_for(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("guestmem.lab.source._INSTALLED", fake / "src")
    with pytest.raises(BuildFailed, match="give the path"):
        find_source("6.12")


def test_a_path_is_remembered_in_full(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fake)
    assert find_source("linux") == Tree(fake / "linux")
    assert find_source("./linux.tar.gz") == Archive(fake / "linux.tar.gz")
    build("linux")
    assert find_kernel(str(fake / "linux")).spec == str(fake / "linux")


# -- what there is ---------------------------------------------------------------------------------------------------


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GUESTMEM_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.directory() == tmp_path / "ours" / "lab"
    monkeypatch.delenv("GUESTMEM_CACHE")
    assert cache.directory() == tmp_path / "xdg" / "guestmem" / "lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.directory() == tmp_path / ".cache" / "guestmem" / "lab"


def test_status_says_what_is_ready_and_what_is_missing(fake: Path, archive: str) -> None:
    before = status()
    assert (before.qemu, before.kernels, before.is_ready, before.size) == ("", (), False, 0)
    qemu = fake / "bin" / "qemu-system-x86_64"
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 7.2.22\necho Copyright\n")
    qemu.chmod(0o755)
    assert (status().qemu, status().is_ready) == ("QEMU emulator version 7.2.22", False)
    done = build(archive)
    after = status()
    assert (after.kernels, after.is_ready, after.missing_tools) == ((done,), True, ())
    assert after.size > 0


LATER = """#!/bin/sh
echo "$@" >> "$FAKE/asked"
case "$*" in
indextargets*) echo "http://archive.example/debian-security/|bookworm-security"; echo "http://archive.example/debian/|bookworm";;
*sourcelist=*update) for word in "$@"; do case "$word" in -oDir::Etc::sourcelist=*) list=${word#*=};; esac; done
    cat "$list" >> "$FAKE/lists"; grep -q trixie "$list" && exit 100; exit 0;;
*sourcelist=*download*) : > linux-source-7.3_1_all.deb;;
*) exit 100;;
esac
"""


def test_a_version_of_a_later_suite_comes_from_the_mirror_that_apt_uses(debian: Path) -> None:
    (debian / "bin" / "apt-get").write_text(LATER)
    (debian / "bin" / "grep").symlink_to(shutil.which("grep", path="/usr/bin:/bin") or "")
    (debian / "bin" / "dpkg-deb").write_text(DPKG.replace("6.12", "7.3"))

    assert find_source("7.3") == Archive(cache.directory() / "sources" / "linux-source-7.3.tar.xz")

    suites = [line.split()[-2] for line in (debian / "lists").read_text().splitlines()]
    assert suites == ["trixie-backports", "forky"]
    assert all("http://archive.example/debian/ " in line for line in (debian / "lists").read_text().splitlines())
    assert [path.name for path in (cache.directory() / "sources").iterdir()] == ["linux-source-7.3.tar.xz"]


def test_a_version_that_no_suite_has_says_why(debian: Path) -> None:
    (debian / "bin" / "apt-get").write_text(LATER.replace("*sourcelist=*download*)", "nothing)"))
    (debian / "bin" / "grep").symlink_to(shutil.which("grep", path="/usr/bin:/bin") or "")

    with pytest.raises(BuildFailed, match=r"cannot download linux-source-9\.9"):
        find_source("9.9")
    assert list((cache.directory() / "sources").iterdir()) == []
