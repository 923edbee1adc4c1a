"""Layouts of live things: any process that holds a VM, a QEMU asked over its QMP socket, or one started for it.

``pid:PID`` reads the process's VMs out of the kernel's memory, whatever VMM it is (``guestmem.host``).
``qmp:SOCKET`` asks a QEMU that is there; ``qemu:ARGUMENTS`` starts one with ``-S``, so that not one guest instruction
runs, asks whether that is so and then the rest, and ends it whatever happens: by signals, and by the kernel if this
process dies first. The answers are monitor text, read by the reader of such text. QMP is spoken by the library
qemu.qmp (extra ``qemu``).
"""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from guestmem.errors import BackendUnavailable
from guestmem.layout.error import LayoutError, printable
from guestmem.layout.readers import qemu_mtree
from guestmem.layout.value import Layout

if TYPE_CHECKING:
    from qemu.qmp import QMPClient

__all__ = ("ANSWER_S", "START_S", "paused_qemu", "read_live")

_BINARY = "qemu-system-x86_64"
START_S = 20.0
ANSWER_S = 20.0
_END_S = 5.0
_DYING_S = 0.5
_MAX_SAID = 1 << 16  # bytes of a QEMU's complaints
_COMMANDS = ("info version", "info mtree -f", "info ramblock", "info memdev")
_ROW = re.compile(r"^ +([0-9a-f]{16})-[0-9a-f]{16} \(prio -?\d+, (?:nv-)?(?:ram|rom|romd)\)", re.MULTILINE)
_HVA_COLUMN = re.compile(r"\bHVA\b")


def read_live(source: str) -> list[Layout]:
    """The layouts behind pid:PID, qmp:SOCKET or qemu:ARGUMENTS; BackendUnavailable where a part is missing."""
    kind, _, what = source.partition(":")
    if kind == "pid":
        return _of_process(source, what)
    if kind == "qmp":
        return qemu_mtree.read(source, _ask(source, Path(what)))
    with paused_qemu(source, what) as socket:
        text = _ask(source, socket, paused=True)
    return qemu_mtree.read(source, text)


def _of_process(source: str, pid: str) -> list[Layout]:
    from guestmem.host.machine import look_at_machine
    from guestmem.layout.readers.host import to_layouts

    if not (pid.isascii() and pid.isdecimal() and 0 < len(pid) < 11):
        raise LayoutError(source, "needed a process number, as in pid:1234")
    found = look_at_machine(int(pid), counters=False)
    if not found.vms:
        raise LayoutError(
            source, "this process holds no VM, or may not be seen", remedy="'guestmem host' lists the VMs"
        )
    return to_layouts(source, found)


@contextmanager
def paused_qemu(source: str, arguments: str) -> Iterator[Path]:
    """Start QEMU before its first instruction; the path of its QMP socket. It is gone when the block is left."""
    program, words = _command(source, arguments)
    with tempfile.TemporaryDirectory(prefix="guestmem-") as directory:
        socket = Path(directory) / "qmp"
        errors = Path(directory) / "stderr"
        # Ours first: a last word that wants a value takes the next one, whatever it is.
        command = [*program, "-S", "-display", "none", "-qmp", f"unix:{socket},server=on,wait=off", *words]
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
            )
        try:
            _wait_for(source, process, socket, errors)
            yield socket
        except LayoutError:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_DYING_S)  # a QEMU that ends opens its socket first: what it said is the reason
            _check_alive(source, process, errors)
            raise
        finally:
            _end(process)


def _command(source: str, arguments: str) -> tuple[list[str], list[str]]:
    """The words that start QEMU, and its arguments."""
    try:
        words = shlex.split(arguments)
    except ValueError as error:
        raise LayoutError(source, f"needed QEMU's arguments ({error})") from None
    binary = _BINARY
    if words and Path(words[0]).name.startswith("qemu-system-"):
        binary = words.pop(0)
    if shutil.which(binary) is None:
        raise BackendUnavailable(f"{source}: {binary} is not installed; install QEMU (Debian: qemu-system-x86)")
    options = [f"-{word.lstrip('-')}" if word.startswith("--") else word for word in words]
    if "-daemonize" in options:
        raise LayoutError(source, "a QEMU that leaves its parent cannot be ended for certain", field="-daemonize")
    if not any(word == "-accel" or "accel=" in word or word == "-enable-kvm" for word in options):
        words += ["-accel", "kvm", "-accel", "tcg"]  # the first that works here
    guard = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    return [*guard, binary], words


def _wait_for(source: str, process: subprocess.Popen[bytes], socket: Path, errors: Path) -> None:
    deadline = time.monotonic() + START_S
    while not socket.exists():
        _check_alive(source, process, errors)
        if time.monotonic() > deadline:
            raise LayoutError(source, f"QEMU did not open its QMP socket in {START_S:.0f} s")
        time.sleep(0.01)


def _check_alive(source: str, process: subprocess.Popen[bytes], errors: Path) -> None:
    """Raise what QEMU said before it ended, if it has."""
    if process.poll() is not None:
        said = errors.read_bytes()[:_MAX_SAID].decode("utf-8", "replace").strip().splitlines()
        fatal = next((line for line in said if "warning:" not in line), f"status {process.returncode}")
        reason = printable(fatal, 300)
        raise LayoutError(source, f"QEMU ended: {reason}") from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and reap it: politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)


def _ask(source: str, socket: Path, *, paused: bool = False) -> bytes:
    """The monitor's answers as one text, as a capture has them; paused: of a QEMU whose guest must not run."""
    try:
        from qemu.qmp import ConnectError, ExecuteError, QMPClient, QMPError
    except ImportError:
        raise BackendUnavailable(f"{source}: needs the library qemu.qmp: pip install 'guestmem[qemu]'") from None
    try:
        return asyncio.run(asyncio.wait_for(_conversation(QMPClient("guestmem"), socket, paused), ANSWER_S))
    except _GuestRunsError:
        remedy = "leave out what starts it"
        raise LayoutError(source, "the guest must not run, and it runs although -S was given", remedy=remedy) from None
    except ConnectError as error:
        cause = printable(error.exc or error, 200)
        raise LayoutError(source, f"no QMP at this socket ({cause})", remedy="use -qmp unix:SOCKET,server=on") from None
    except TimeoutError:
        remedy = "another client may hold the monitor"
        raise LayoutError(source, f"no answer in {ANSWER_S:.0f} s", remedy=remedy) from None
    except (ExecuteError, QMPError, OSError, ValueError, RecursionError) as error:
        raise LayoutError(source, f"QMP failed ({printable(error, 200)})") from None


class _GuestRunsError(Exception):
    pass


async def _conversation(client: QMPClient, socket: Path, paused: bool) -> bytes:
    await client.connect(str(socket))
    try:
        if paused:
            status = await client.execute("query-status")
            if not isinstance(status, dict) or status.get("running") is not False:
                raise _GuestRunsError
        texts = [await _monitor(client, command) for command in _COMMANDS]
        if not _HVA_COLUMN.search(texts[2]):  # before 10.0 only gpa2hva tells
            starts = dict.fromkeys(_ROW.findall(texts[1]))
            texts += [await _monitor(client, f"gpa2hva 0x{start}") for start in starts]
        return "\n".join(texts).encode()
    finally:
        await client.disconnect()


async def _monitor(client: QMPClient, command: str) -> str:
    answer = await client.execute("human-monitor-command", {"command-line": command})
    return f"(qemu) {command}\n{answer}" if isinstance(answer, str) else ""
