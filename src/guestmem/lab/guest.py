"""The first process of the lab's machine: mounts, the port to the host, the end of the machine.

Runs in the guest only, as process 1 and as root.
"""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

from guestmem.kvm import libc
from guestmem.lab.channel import HOST_TAG, PORT

__all__ = ("enter_host", "load_modules", "mount", "mount_kernel_filesystems", "open_port", "power_off")

_MS_RDONLY = 1
_MS_BIND = 4096
_RB_AUTOBOOT = 0x01234567  # include/uapi/linux/reboot.h: LINUX_REBOOT_CMD_RESTART
_FINIT_MODULE = 313  # arch/x86/entry/syscalls/syscall_64.tbl: libc has no function for it
_MODULES = Path("/modules")
_HOST = "/host"
_UNCOVERED = "/host-files"  # the same without what the lab mounts over it


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2); makes the target directory. KvmError (an OSError) names the target."""
    if not Path(target).is_dir():
        Path(target).mkdir(parents=True)
    arguments = (source.encode(), target.encode(), kind.encode(), flags, options.encode())
    libc.call("mount", f"mount of {source} at {target}", *arguments)


def mount_kernel_filesystems() -> None:
    """/proc, /sys, /dev, and /tmp in memory."""
    mount("proc", "/proc", "proc")
    mount("sysfs", "/sys", "sysfs")
    mount("devtmpfs", "/dev", "devtmpfs")
    mount("devpts", "/dev/pts", "devpts", options="mode=620,ptmxmode=666")
    mount("tmpfs", "/dev/shm", "tmpfs", options="mode=1777")
    mount("tmpfs", "/tmp", "tmpfs", options="mode=1777")


def load_modules() -> None:
    """Load what a packaged kernel has in modules, in the order of their numbers; KvmError names the module.

    Parameters are those of the kernel's command line, as modprobe takes them from there: kvm_amd.npt=0.
    """
    words = Path("/proc/cmdline").read_text().split()
    for path in sorted(_MODULES.glob("*.ko")):
        own = f"{path.stem.partition('-')[2]}."
        parameters = " ".join(word.removeprefix(own) for word in words if word.startswith(own))
        with path.open("rb") as module:
            libc.call("syscall", f"loading of {path.name}", _FINIT_MODULE, module.fileno(), parameters.encode(), 0)


def enter_host(directory: str) -> None:
    """Make the host's file system this process's root: read-only, with the lab's own /proc, /sys, /dev and /tmp.

    A directory below /tmp is there all the same, with all that its first ancestor in /tmp has.
    """
    if not os.path.ismount(_HOST):
        mount(HOST_TAG, _HOST, "9p", _MS_RDONLY, "trans=virtio,version=9p2000.L,cache=loose,msize=262144")
        mount(_HOST, _UNCOVERED, "", _MS_BIND)
        for name in ("/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/tmp"):
            if Path(_HOST + name).is_dir():  # a host without it cannot be given one: the mount is read-only
                mount(name, _HOST + name, "", _MS_BIND)
    _uncover(directory)
    os.chroot(_HOST)


def _uncover(directory: str) -> None:
    parts = Path(directory).parts
    if parts[:2] == ("/", "tmp") and len(parts) > 2:
        there, seen = f"{_UNCOVERED}/tmp/{parts[2]}", f"{_HOST}/tmp/{parts[2]}"
        if Path(there).is_dir() and not os.path.ismount(seen):
            mount(there, seen, "", _MS_BIND)


def open_port(limit_s: float = 10.0) -> int:
    """The descriptor of the virtio-serial port, once the host is connected to it; OSError after limit_s seconds.

    The driver learns the port's name and the host's presence a moment after the device appears.
    """
    deadline = time.monotonic() + limit_s
    port = -1
    while time.monotonic() < deadline:
        if port < 0:
            port = _find_port()
        elif not _is_hung_up(port):
            return port
        time.sleep(0.002)
    raise OSError(f"no host behind a virtio-serial port named {PORT!r} within {limit_s} s")


def power_off() -> None:
    """End the machine now: nothing in it could switch it off, but a restart is the end of QEMU (-no-reboot)."""
    libc.call("reboot", "restart", _RB_AUTOBOOT)


def _find_port() -> int:
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT:
            return os.open(f"/dev/{name.parent.name}", os.O_RDWR | os.O_CLOEXEC)
    return -1


def _is_hung_up(port: int) -> bool:
    poll = select.poll()
    poll.register(port, select.POLLIN)
    return any(event & select.POLLHUP for _, event in poll.poll(0))
