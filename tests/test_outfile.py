"""Files that guestmem writes: whole or not at all, and what is no regular file stays what it is."""

from __future__ import annotations

import ast
import gzip
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from source import modules

from guestmem.outfile import write_text, writing_to

ROOT = Path(__file__).parent.parent
RECORDING = ROOT / "examples/findings/file-that-nothing-binds.jsonl"
LAYOUT = ROOT / "examples/layouts/discussion.toml"
PATIENCE_S = 30.0

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mknod and mount need root")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


# Regular files


def test_a_file_replaces_the_old_one_and_keeps_its_mode(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    page.chmod(0o640)
    write_text(page, "new é")
    assert page.read_text(encoding="utf-8") == "new é"
    assert mode(page) == 0o640
    assert names(tmp_path) == ["page.html"]


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_text(tmp_path / "page.html", "x")
    assert (tmp_path / "page.html").stat().st_mode == ordinary.stat().st_mode


def test_secret_contents_are_never_readable_by_others_under_another_name(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.touch(mode=0o600)
    with writing_to(page):
        (beside,) = [path for path in tmp_path.iterdir() if path != page]
        assert mode(beside) == 0o600


def test_the_name_beside_it_is_another_every_time(tmp_path: Path) -> None:
    seen = set()
    for _ in range(3):
        with writing_to(tmp_path / "page.html"):
            seen |= {name for name in names(tmp_path) if name != "page.html"}
    assert len(seen) == 3


@pytest.mark.parametrize("plant", ["file", "link"])
def test_what_somebody_planted_under_that_name_is_not_opened(
    plant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda count: bytes(count))
    planted, victim = tmp_path / f".guestmem-{'00' * 8}", tmp_path / "victim"
    victim.write_text("mine")
    if plant == "link":
        planted.symlink_to(victim)
    else:
        planted.write_text("mine")
    with pytest.raises(FileExistsError) as failed:
        write_text(tmp_path / "page.html", "x")
    assert failed.value.filename == str(tmp_path / "page.html")
    assert (planted.read_text(), victim.read_text()) == ("mine", "mine")


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as failed:
        write_text(page, "new")
    assert failed.value.filename == str(page)
    assert page.read_text() == "old"
    assert names(tmp_path) == ["page.html"]


@pytest.mark.parametrize("name", ["missing/page.html", "."])
def test_a_place_that_takes_no_file_is_an_oserror_with_its_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(OSError, match="director") as failed:
        write_text(tmp_path / name, "x")
    assert str(failed.value.filename) == str(tmp_path / name)


def test_two_writers_leave_the_whole_file_of_one_of_them(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    texts = [letter * 300_000 for letter in "ab"]

    def write(text: str) -> None:
        for _ in range(20):
            write_text(page, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        if page.exists():
            seen.add(page.read_text())
    assert seen <= set(texts)
    assert page.read_text() in texts
    assert names(tmp_path) == ["page.html"]


# Links


def test_what_a_symbolic_link_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "page.html").write_text("old")
    (tmp_path / "real" / "middle").symlink_to("page.html")
    (tmp_path / "link").symlink_to("real/middle")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "middle").is_symlink()
    assert (tmp_path / "real" / "page.html").read_text() == "x"


def test_what_a_dangling_link_points_to_is_made(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "page.html")
    write_text(tmp_path / "link", "x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "page.html").read_text() == "x"
    assert names(tmp_path / "real") == ["page.html"]


def test_a_link_to_itself_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("link")
    with pytest.raises(OSError, match="symbolic links") as failed:
        write_text(tmp_path / "link", "x")
    assert failed.value.filename == str(tmp_path / "link")


# What is no regular file


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], bytes]]]:
    """A FIFO and what arrived in it."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as reader:
        yield path, lambda: reader.communicate(timeout=PATIENCE_S)[0]
        reader.kill()


def test_a_fifo_gets_the_text_and_stays_one(fifo: tuple[Path, Callable[[], bytes]]) -> None:
    path, arrived = fifo
    write_text(path, "x")
    assert arrived() == b"x"
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert names(path.parent) == ["fifo"]


@needs_root
@pytest.mark.parametrize("through_link", [False, True])
def test_a_device_is_written_and_stays_one(tmp_path: Path, through_link: bool) -> None:
    node = tmp_path / "null"
    os.mknod(node, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    (tmp_path / "link").symlink_to(node)
    write_text(tmp_path / "link" if through_link else node, "x")
    assert stat.S_ISCHR(node.stat().st_mode)
    assert names(tmp_path) == ["link", "null"]


def test_a_socket_is_refused_and_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        with pytest.raises(OSError, match="No such device or address") as failed:
            write_text(path, "x")
    assert failed.value.filename == str(path)
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_a_full_device_is_an_oserror_with_its_name() -> None:
    with pytest.raises(OSError, match="No space left") as failed:
        write_text(Path("/dev/full"), "x")
    assert failed.value.filename == "/dev/full"


def test_a_descriptor_is_written_where_it_stands(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log:
        log.write("before\n")
        log.flush()
        write_text(Path(f"/proc/self/fd/{log.fileno()}"), "x\n")
        log.write("after\n")
    assert (tmp_path / "log").read_text() == "before\nx\nafter\n"


def test_a_pipe_and_a_socket_without_a_name_get_the_text() -> None:
    out, into = os.pipe()
    write_text(Path(f"/dev/fd/{into}"), "x")
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        assert pipe.read() == b"x"
    here, there = socket.socketpair()
    with here, there:
        write_text(Path(f"/dev/fd/{there.fileno()}"), "y")
        assert here.recv(10) == b"y"


# The commands that write

# Not files that a user named: each module with what it opens.
OTHERS = {
    "guestmem.cli": "NamedTemporaryFile",  # the traceback of a bug
    "guestmem.lab.cache": "open",  # a lock
    "guestmem.lab.image": "fdopen",  # a memfd
    "guestmem.lab.package": "open",  # modules in the cache
    "guestmem.lab.kernel": "open",  # the log of a build, which goes on
    "guestmem.layout.live": "open",  # in a temporary directory
    "guestmem.recordings.child": "write_text",  # in /proc
}


MODES = {f"{mode}{kind}" for mode in "wxa" for kind in ("", "b", "+", "b+")}


def opened_to_write(tree: ast.AST) -> Iterator[str]:
    """The names of what is called to write a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            modes = {str(each.value) for each in node.args if isinstance(each, ast.Constant)}
            opens = node.func.attr in ("open", "fdopen", "NamedTemporaryFile")
            if node.func.attr in ("write_text", "write_bytes") or (opens and modes & MODES):
                yield node.func.attr


def test_there_is_one_way_to_write_a_file_that_a_user_named() -> None:
    found = {(name, call) for name, tree in modules().items() for call in opened_to_write(tree)}
    assert found == set(OTHERS.items())


WRITERS: dict[str, tuple[str, ...]] = {
    "run": ("run", str(RECORDING), "--record"),
    "check": ("check", "--fail-on", "never", str(LAYOUT), "--html"),
}


def guestmem(*arguments: object, before: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run it as a process of its own, by the command before."""
    command = [*before, sys.executable, "-m", "guestmem", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)


def one_line(ended: subprocess.CompletedProcess[str], path: Path, words: str) -> None:
    """It ended with 2 and said so of the path."""
    assert (ended.returncode, ended.stderr) == (2, f"guestmem: {path}: {words}\n")


@pytest.mark.parametrize("command", WRITERS)
def test_every_command_keeps_mode_and_link(command: str, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.touch()
    real.chmod(0o600)
    link.symlink_to(real)
    assert guestmem(*WRITERS[command], link).returncode == 0
    assert (link.is_symlink(), mode(real), real.stat().st_size > 0) == (True, 0o600, True)
    assert names(tmp_path) == ["link", "real"]


@pytest.mark.parametrize("command", WRITERS)
def test_every_command_writes_into_a_fifo(command: str, fifo: tuple[Path, Callable[[], bytes]]) -> None:
    path, arrived = fifo
    assert guestmem(*WRITERS[command], path).returncode == 0
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert len(arrived()) > 100


def test_a_compressed_recording_goes_into_a_fifo_too(tmp_path: Path) -> None:
    path = tmp_path / "fifo.gz"
    os.mkfifo(path)
    with subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) as reader:
        assert guestmem(*WRITERS["run"], path).returncode == 0
        assert b'"op":"begin"' in gzip.decompress(reader.communicate(timeout=PATIENCE_S)[0])


@pytest.mark.parametrize("command", WRITERS)
def test_every_command_says_that_a_device_is_full(command: str) -> None:
    one_line(guestmem(*WRITERS[command], "/dev/full"), Path("/dev/full"), "No space left on device")


@pytest.mark.parametrize("command", WRITERS)
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_every_command_says_that_a_directory_takes_no_file(command: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    as_others = ["setpriv", "--bounding-set", "-dac_override"] if os.geteuid() == 0 else []  # modes do not stop root
    one_line(guestmem(*WRITERS[command], tmp_path / "file", before=as_others), tmp_path / "file", "Permission denied")
    assert names(tmp_path) == []


@needs_root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare (util-linux) is not installed")
@pytest.mark.parametrize("command", WRITERS)
def test_every_command_leaves_the_old_file_on_a_full_disk(command: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    script = (
        f'mount -t tmpfs -o size=8k none "{tmp_path}" && echo old >"{path}" && dd if=/dev/zero of="{tmp_path}/rest" '
        f'bs=4k count=1 status=none && {{ "$@"; status=$?; cat "{path}"; ls -A "{tmp_path}"; exit $status; }}'
    )
    ended = guestmem(*WRITERS[command], path, before=["unshare", "-m", "sh", "-c", script, "sh"])
    one_line(ended, path, "No space left on device")
    assert ended.stdout == "old\nfile\nrest\n"


WAITING = """
import sys, time
from pathlib import Path
from guestmem import cli
from guestmem.outfile import writing_to

def command(**_):
    with writing_to(Path(sys.argv[1])) as file:
        file.write(b"x")
        time.sleep(60)

cli.app = command
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_leaves_the_old_file_and_nothing_beside_it(number: signal.Signals, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    with subprocess.Popen([sys.executable, "-c", WAITING, str(page)]) as process:
        end = time.monotonic() + PATIENCE_S
        while len(names(tmp_path)) < 2:
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 128 + number
    assert page.read_text() == "old"
    assert names(tmp_path) == ["page.html"]
