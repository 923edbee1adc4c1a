"""A kernel is built once, goes on where it stopped, and is there whole or not at all. The tools are stand-ins."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import threading
from pathlib import Path

import fake_tools
import pytest
from fake_lab import eventually, is_running

from guestmem.errors import BackendUnavailable, InputError
from guestmem.lab import cache, kernel
from guestmem.lab.config import asked_for, fragment
from guestmem.lab.errors import BuildFailed
from guestmem.lab.inventory import status
from guestmem.lab.kernel import Kernel, Progress, bootable, build, built, find_kernel, missing_tools
from guestmem.lab.qemu import Bootable


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the stand-ins."""
    return fake_tools.lay_out(tmp_path, monkeypatch)


@pytest.fixture
def archive(fake: Path) -> str:
    """An archive of a source."""
    return str(fake / "linux.tar.gz")


def made(fake: Path) -> list[str]:
    """What make was asked for, one word for each run: its target."""
    lines = (fake / "made").read_text().splitlines() if (fake / "made").exists() else []
    return ["configure" if "allnoconfig" in line else "compile" for line in lines]


def stages(seen: list[Progress]) -> list[str]:
    return list(dict.fromkeys(progress.stage for progress in seen))


def test_a_build_goes_through_its_stages_and_leaves_only_the_kernel(fake: Path, archive: str) -> None:
    seen: list[Progress] = []
    done = build(archive, progress=seen.append)
    assert stages(seen) == ["fetch", "wait", "unpack", "configure", "compile", "install"]
    assert done.image.read_text() == "kernel\n"
    assert (done.spec, done.release, done.compiler, done.without) == (archive, "6.12.9-guestmem", "gcc 12.2.0", ())
    assert (done.image.parent / "config").read_text() == asked_for(fragment())
    assert [path.name for path in (cache.directory() / "work").iterdir()] == [f"{done.key}.lock"]
    assert status().unfinished == ()


def test_a_kernel_that_is_built_is_not_built_again(fake: Path, archive: str) -> None:
    first = build(archive)
    assert build(archive) == first
    assert made(fake) == ["configure", "compile"]
    assert (built(), find_kernel(archive)) == ([first], first)


def test_no_name_of_this_machine_goes_into_the_kernel(fake: Path, archive: str) -> None:
    build(archive)
    for line in (fake / "made").read_text().splitlines():
        assert {"KBUILD_BUILD_USER=guestmem", "KBUILD_BUILD_HOST=lab"} <= set(line.split())


def test_another_source_or_configuration_is_another_kernel(
    fake: Path, archive: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {build(archive).key, build(str(fake / "linux")).key}
    monkeypatch.setattr(kernel, "fragment", lambda: fragment() + "CONFIG_MORE=y\n")
    with pytest.raises(BackendUnavailable):
        find_kernel(archive)
    keys.add(build(archive).key)
    assert len(keys) == 3


def test_a_tree_is_compiled_every_time_and_kept(fake: Path) -> None:
    first = build(str(fake / "linux"))
    second = build(str(fake / "linux"))
    assert made(fake) == ["configure", "compile", "compile"]
    assert second.key == first.key
    assert [path.name for path in (fake / "linux").iterdir()] == ["Kconfig"]
    assert built() == [second]


def test_a_failed_compilation_shows_its_end_and_building_again_goes_on(fake: Path, archive: str) -> None:
    (fake / "fail").write_text("mm/slub.c: No space left on device\n")
    with pytest.raises(BuildFailed, match="No space left on device"):
        build(archive)
    assert built() == []
    with pytest.raises(BackendUnavailable, match="guestmem lab build"):
        find_kernel(archive)
    assert len(status().unfinished) == 1
    (fake / "fail").unlink()
    seen: list[Progress] = []
    build(archive, progress=seen.append)
    assert stages(seen) == ["fetch", "wait", "compile", "install"]
    assert made(fake) == ["configure", "compile", "compile"]


@pytest.mark.parametrize("stage", ["unpack", "configure", "compile", "install"])
def test_ctrl_c_at_any_stage_leaves_a_build_that_goes_on(fake: Path, archive: str, stage: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(archive, progress=interrupt)
    assert built() == []
    assert find_kernel(archive) if build(archive) is None else built()


def test_ctrl_c_ends_what_make_started(fake: Path, archive: str) -> None:
    (fake / "hang").touch()

    def interrupt(progress: Progress) -> None:
        if progress.stage == "compile" and progress.done:
            assert eventually(lambda: (fake / "hanging").exists() and (fake / "hanging").read_text())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(archive, progress=interrupt)
    assert eventually(lambda: not is_running(int((fake / "hanging").read_text())))


@pytest.mark.parametrize("step", ["copy", "rmtree"])
def test_a_full_disk_at_the_last_step_leaves_no_half_kernel(
    fake: Path, archive: str, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "vmlinux")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, step, full)
        with pytest.raises(BuildFailed, match="No space left on device"):
            build(archive)
    assert [path for path in (cache.directory() / "kernels").glob("*") if not (path / "vmlinux").exists()] == []
    assert build(archive).image.read_text() == "kernel\n"


def test_an_unpacking_that_was_cut_short_is_done_again(fake: Path, archive: str) -> None:
    def interrupt(progress: Progress) -> None:
        if progress.stage == "configure":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(archive, progress=interrupt)
    (work,) = [path for path in (cache.directory() / "work").iterdir() if path.is_dir()]
    (work / "source").rename(work / "source.partial")
    (work / "source.partial" / "Kconfig").unlink()
    assert build(archive).release == "6.12.9-guestmem"


def test_a_source_without_a_required_option_is_refused_by_name(fake: Path, archive: str) -> None:
    (fake / "drop").write_text("CONFIG_KVM_SW_PROTECTED_VM")
    with pytest.raises(BuildFailed, match="does not offer CONFIG_KVM_SW_PROTECTED_VM"):
        build(archive)


def test_a_source_without_another_option_is_built_and_says_so(fake: Path, archive: str) -> None:
    (fake / "drop").write_text("CONFIG_MEMORY_FAILURE")
    assert build(archive).without == ("CONFIG_MEMORY_FAILURE",)


def test_what_is_no_source_is_refused(fake: Path) -> None:
    (fake / "linux" / "Kconfig").unlink()
    with pytest.raises(BuildFailed, match="no kernel source"):
        build(str(fake / "linux"))
    with pytest.raises(ValueError, match="no kernel source at"):
        build(str(fake / "nowhere"))
    (fake / "broken.tar.gz").write_bytes(b"not a tar")
    with pytest.raises(BuildFailed, match="tar failed"):
        build(str(fake / "broken.tar.gz"))


def test_missing_tools_are_named_as_packages_before_anything_is_done(fake: Path, archive: str) -> None:
    for name in ("flex", "ld"):
        (fake / "bin" / name).unlink()
    assert missing_tools() == ["binutils", "flex"]
    with pytest.raises(BackendUnavailable, match="apt install binutils flex"):
        build(archive)
    assert not cache.directory().exists()


def test_a_missing_header_is_named_as_its_package(fake: Path) -> None:
    (fake / "bin" / "gcc").write_text("#!/bin/sh\nexit 1\n")
    assert missing_tools() == ["libelf-dev"]


def test_two_builds_at_once_compile_once(fake: Path, archive: str) -> None:
    results: list[Kernel] = []
    threads = [threading.Thread(target=lambda: results.append(build(archive))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    assert made(fake) == ["configure", "compile"]


LOCKER = """
import sys, time
from guestmem.lab import cache
with cache.locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(1000)
"""


def test_a_build_waits_for_the_one_of_another_process_and_not_for_a_dead_one(fake: Path, archive: str) -> None:
    key = build(archive).key
    done: list[Kernel] = []
    waiting = threading.Thread(target=lambda: done.append(build(archive)))
    with subprocess.Popen([sys.executable, "-c", LOCKER, key], stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"locked\n"
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
        other.kill()
    waiting.join()
    assert [kernel.key for kernel in done] == [key]


def test_a_record_of_another_version_is_no_kernel(fake: Path, archive: str) -> None:
    record = build(archive).image.parent / "kernel.json"
    record.write_text('{"key": 1}')
    assert built() == []


def test_other_contents_of_the_same_size_are_damage(fake: Path, archive: str) -> None:
    image = build(archive).image
    image.write_text("Kernel\n")
    with pytest.raises(
        BackendUnavailable, match="vmlinux has other contents than when it was built; run: guestmem lab"
    ):
        find_kernel(archive)
    image.unlink()
    with pytest.raises(BackendUnavailable, match="damaged: vmlinux: No such file or directory; run: guestmem lab"):
        find_kernel(archive)


# The smallest ELF file with sections: a header, 16 bytes of a section, three section headers (none, those bytes, bss).
_HEADERS = bytes(64) + struct.pack("<IIQQQQIIQQ", 0, 1, 0, 0, 64, 16, 0, 0, 0, 0)
_HEADERS += struct.pack("<IIQQQQIIQQ", 0, 8, 0, 0, 80, 1 << 20, 0, 0, 0, 0)
ELF = b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 0, 80, 0, 64, 0, 0, 64, 3, 0)
ELF += bytes(16) + _HEADERS


def test_a_record_of_a_version_without_digests_needs_a_whole_elf_file_and_the_next_build_adds_one(
    fake: Path, archive: str
) -> None:
    done = build(archive)
    record = done.image.parent / "kernel.json"
    old = {key: value for key, value in json.loads(record.read_text()).items() if key not in ("size", "digest")}
    record.write_text(json.dumps(old))
    for length in range(len(ELF)):
        done.image.write_bytes(ELF[:length])
        with pytest.raises(
            BackendUnavailable, match="damaged: vmlinux is not a whole ELF file; run: guestmem lab build"
        ):
            find_kernel(archive)
    done.image.write_bytes(ELF)
    assert find_kernel(archive).digest == ""
    assert build(archive).digest == hashlib.sha256(ELF).hexdigest()
    assert json.loads(record.read_text()) == {**old, "size": len(ELF), "digest": hashlib.sha256(ELF).hexdigest()}
    assert made(fake) == ["configure", "compile"]


def test_clean_removes_what_the_lab_made_and_nothing_else(fake: Path, archive: str) -> None:
    build(archive)
    other = cache.directory() / "notes"
    other.write_text("mine")
    assert cache.clean() > 0
    assert [path.name for path in cache.directory().iterdir()] == ["notes"]
    assert cache.clean() == 0


@pytest.mark.parametrize("head", [b"\x7fELF", bytes(0x202) + b"HdrS"])
def test_a_built_kernel_is_booted_as_it_is(fake: Path, head: bytes) -> None:
    path = fake / "vmlinux"
    path.write_bytes(head + bytes(64))

    assert bootable(str(path)) == Bootable(path.resolve())


@pytest.mark.parametrize("head", [b"", b"\x7fEL", b"!<arch>\ndebian-binary", bytes(0x201) + b"HdrS"])
def test_a_file_that_is_no_kernel_is_named_with_what_is_needed(fake: Path, head: bytes) -> None:
    path = fake / "thing"
    path.write_bytes(head)

    with pytest.raises(InputError, match="thing is no kernel: neither an uncompressed vmlinux"):
        bootable(str(path))


def test_what_was_built_of_an_archive_is_booted_by_its_name(fake: Path, archive: str) -> None:
    done = build(archive)

    assert bootable(archive) == Bootable(done.image)


@pytest.mark.parametrize("spec", ["7.9", "/nowhere/vmlinux"])
def test_a_kernel_that_was_never_built_is_said_with_the_command(fake: Path, spec: str) -> None:
    with pytest.raises(BackendUnavailable, match=f"run: guestmem lab build --kernel {spec}"):
        bootable(spec)
