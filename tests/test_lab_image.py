"""The image holds a whole interpreter and what the agent imports, and nothing of this machine beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_lab_cpio import read

from guestmem.errors import BackendUnavailable
from guestmem.lab.image import libraries, make_image

LDD = """\tlinux-vdso.so.1 (0x00007ffe)
\tlibffi.so.8 => /lib/x86_64-linux-gnu/libffi.so.8 (0x00007f1b)
\tlibgone.so => not found
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f1d)
/usr/lib/python3/_json.so:
\tstatically linked
\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f1c)
"""


def test_a_library_goes_where_the_loader_finds_it_and_once() -> None:
    assert list(libraries(LDD)) == [
        ("lib/libffi.so.8", Path("/lib/x86_64-linux-gnu/libffi.so.8")),
        ("lib/libc.so.6", Path("/lib/x86_64-linux-gnu/libc.so.6")),
        ("lib64/ld-linux-x86-64.so.2", Path("/lib64/ld-linux-x86-64.so.2")),
    ]


def test_a_static_binary_needs_no_library() -> None:
    assert list(libraries("\tnot a dynamic executable\n\tstatically linked\n")) == []


@pytest.fixture(scope="module")
def image() -> Iterator[bytes]:
    fd = make_image()
    yield os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)


def test_the_kernels_console_and_first_process_are_there(image: bytes) -> None:
    entries = {name: (mode, device) for name, mode, _, device in read(image)}
    assert entries["dev/console"][1] == (5, 1)
    assert entries["bin/python3"][0] & 0o111 == 0o111


@pytest.mark.parametrize(
    "module", ["guestmem/lab/agent", "guestmem/kvm/__init__", "guestmem/kvm/process", "msgspec/__init__"]
)
def test_what_the_agent_imports_is_there_as_code_without_source(image: bytes, module: str) -> None:
    names = {name for name, *_ in read(image)}
    assert f"py/{module}.pyc" in names
    assert f"py/{module}.py" not in names


def test_what_the_agent_does_not_import_is_not_there(image: bytes) -> None:
    names = {name for name, *_ in read(image)}
    assert not [name for name in names if name.startswith(("py/guestmem/model", "py/typer", "py/rich", "py/pytest"))]


def test_the_interpreter_runs_from_the_image_alone(image: bytes, tmp_path: Path) -> None:
    for name, mode, contents, _ in read(image):
        place = tmp_path / name
        if mode & 0o170000 == 0o100000:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(contents)
            place.chmod(mode & 0o777)
    environment = {
        "PYTHONHOME": str(tmp_path),
        "PYTHONPATH": str(tmp_path / "py"),
        "LD_LIBRARY_PATH": str(tmp_path / "lib"),
    }
    specs = "[getattr(module, '__spec__', None) for module in sys.modules.values()]"
    code = f"import guestmem.lab.agent, guestmem.kvm, sys; print({{spec.origin for spec in {specs} if spec}})"
    run = subprocess.run(
        [tmp_path / "bin/python3", "-S", "-B", "-c", code], env=environment, capture_output=True, text=True, cwd="/"
    )
    assert (run.returncode, run.stderr) == (0, "")
    origins: set[str | None] = eval(run.stdout)
    outside = {
        origin for origin in origins if origin and origin.startswith("/") and not origin.startswith(str(tmp_path))
    }
    assert outside == set()


def test_an_image_that_cannot_be_made_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["/nonexistent"])
    with pytest.raises(BackendUnavailable, match="cannot be made"):
        make_image()
