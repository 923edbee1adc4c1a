"""The QEMU process of a lab: its command line, its start, its certain end.

QEMU gets everything as inherited descriptors: two socket pairs (the channel, the console) and the initramfs in
memory. There is no socket or file with a name that could stay behind or be another process's.

It leads a session of its own, so ctrl-C at a terminal reaches us and not it. It ends when ``close`` is called, when
this process ends in any way (guestmem.lab.keeper), or by itself when the guest sees the host go.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guestmem.errors import BackendUnavailable
from guestmem.kvm.tsc import rate_khz
from guestmem.lab import keeper
from guestmem.lab.channel import HOST_TAG, PORT
from guestmem.units import GIB, MIB

__all__ = ("Bootable", "Hardware", "Qemu", "command_line", "why_not_accelerated")

QEMU = "qemu-system-x86_64"

# loglevel 5 shows warnings: a WARN in KVM must be seen. panic=-1 restarts at once, and -no-reboot makes that an end.
# The restart is a triple fault, which needs no device.
_KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "loglevel=5",
    "panic=-1",
    "oops=panic",
    "random.trust_cpu=on",
    "reboot=t",
)
_ENVIRONMENT = ("PYTHONHOME=/", "PYTHONPATH=/py", "PYTHONUTF8=1", "LD_LIBRARY_PATH=/lib", "PATH=/bin")


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the lab's machine has. memory is bytes; host_files lends it the host's file system, read-only.

    kernel_arguments go to its kernel as they are, for example "hugepagesz=1G hugepages=1". accelerated: the host's KVM
    runs it instead of emulation, and nests; refused where the host cannot.
    """

    memory: int = 2 * GIB
    cpus: int = 1
    host_files: bool = False
    kernel_arguments: tuple[str, ...] = ()
    accelerated: bool = False


@dataclass(frozen=True, slots=True)
class Bootable:
    """A kernel: its image, and an archive of modules that process 1 loads, None if all is built in.

    A kernel with modules is a distribution's, which finds its devices by PCI and ACPI. host_files: it can be lent the
    host's file system.
    """

    image: Path
    modules: Path | None = None
    host_files: bool = True


def why_not_accelerated(root: Path = Path("/")) -> str:
    """Why the KVM of this host cannot run a lab, in words; "" if it can. Nothing is tried."""
    if not os.access(root / "dev/kvm", os.R_OK | os.W_OK):
        return "there is no /dev/kvm that this user can open"
    nested = root / "sys/module/kvm_amd/parameters/nested"
    if not nested.exists():
        return "kvm_amd is not loaded, and the lab's kernel has KVM for AMD processors only"
    if nested.read_text().strip() not in ("1", "Y"):
        return "nested virtualisation is off; as root: modprobe -r kvm_amd && modprobe kvm_amd nested=1"
    return ""


def command_line(
    kernel: Bootable, hardware: Hardware, *, image: int, port: int, console: int, tsc_khz: int = 0
) -> list[str]:
    """QEMU's arguments; image, port and console are descriptors it will inherit; tsc_khz 0 is not known."""
    clock = (f"tsc_early_khz={tsc_khz}",) if tsc_khz else ()
    pci = kernel.modules is not None
    own = ("transparent_hugepage=madvise",) if pci else ()  # as minimal.config has it
    append = " ".join((*_KERNEL_ARGUMENTS, *_ENVIRONMENT, *clock, *own, *hardware.kernel_arguments))
    arguments = [QEMU, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
    # microvm has neither PCI nor ACPI, so our kernel needs neither: a third less to build, and to boot. QEMU gives it
    # where its devices are by appending to its arguments.
    arguments += ["-machine", "microvm,acpi=on,pcie=on" if pci else "microvm,acpi=off"]
    # la57=off: SVM in TCG cannot nest five-level tables. tb-size: the cache of translated code, in MiB, is memory too.
    if hardware.accelerated:
        arguments += ["-accel", "kvm", "-cpu", "host"]
    else:
        arguments += ["-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max,la57=off"]
    arguments += ["-smp", str(hardware.cpus), "-m", f"{hardware.memory // MIB}M"]
    arguments += ["-kernel", str(kernel.image), "-initrd", f"/proc/self/fd/{image}", "-append", append]
    arguments += ["-chardev", f"socket,id=console,fd={console}", "-serial", "chardev:console"]
    arguments += [
        "-device",
        "virtio-serial-pci" if pci else "virtio-serial-device",
        "-chardev",
        f"socket,id=port,fd={port}",
    ]
    arguments += ["-device", f"virtserialport,chardev=port,name={PORT}"]
    if hardware.host_files:
        arguments += ["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]
        arguments += ["-device", f"virtio-9p-{'pci' if pci else 'device'},fsdev=host,mount_tag={HOST_TAG}"]
    return arguments


class Qemu:
    """A running QEMU; ``port`` and ``console`` are our ends of its two sockets, ``pidfd`` is readable once it ended."""

    def __init__(self, arguments: Sequence[str], inherit: Sequence[int], port: socket.socket, console: socket.socket):
        if shutil.which(arguments[0]) is None:
            raise BackendUnavailable(f"the lab needs {arguments[0]}; on Debian: apt install qemu-system-x86")
        self.port = port
        self.console = console
        self._complaints = os.memfd_create("qemu-output")
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=self._complaints,
            stderr=self._complaints,
            pass_fds=tuple(inherit),
            start_new_session=True,
        )
        self.pidfd = os.pidfd_open(self._process.pid)
        self._keeper = _start_keeper(self.pidfd)
        # The last resort, at garbage collection or interpreter exit. A forked child is not the owner: its pid differs.
        self._finalizer = weakref.finalize(self, _end, os.getpid(), self._process, self._keeper)

    @classmethod
    def start(cls, kernel: Bootable, hardware: Hardware, image: int) -> Qemu:
        """Start a machine with the initramfs in descriptor image; BackendUnavailable if there is no QEMU, or no KVM."""
        if hardware.accelerated and (reason := why_not_accelerated()):
            raise BackendUnavailable(f"the lab cannot run on this host's KVM: {reason}")
        port, far_port = socket.socketpair()
        console, far_console = socket.socketpair()
        inherit = (image, far_port.fileno(), far_console.fileno())
        arguments = command_line(kernel, hardware, image=image, port=inherit[1], console=inherit[2], tsc_khz=rate_khz())
        try:
            return cls(arguments, inherit, port, console)
        except BaseException:
            port.close()
            console.close()
            raise
        finally:
            far_port.close()
            far_console.close()

    @property
    def pid(self) -> int:
        """The number of the QEMU process on this host."""
        return self._process.pid

    def complaints(self) -> str:
        """What QEMU itself wrote to its standard output and error."""
        return os.pread(self._complaints, 1 << 16, 0).decode(errors="replace").strip()

    def ended(self, limit_s: float) -> int | None:
        """QEMU's exit code if it ends within limit_s seconds (negative: the signal), else None."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(limit_s)
        return None

    def close(self) -> None:
        """Kill QEMU and wait until it is gone; nothing in the guest is worth an orderly end. Again: nothing."""
        if not self._finalizer.detach():
            return
        _end(os.getpid(), self._process, self._keeper)
        self.port.close()
        self.console.close()
        os.close(self.pidfd)
        os.close(self._complaints)


def _start_keeper(machine: int) -> subprocess.Popen[bytes]:
    owner = os.pidfd_open(os.getpid())
    try:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(owner), str(machine)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=(owner, machine),
            start_new_session=True,
        )
    finally:
        os.close(owner)


def _end(owner: int, *processes: subprocess.Popen[bytes]) -> None:
    if os.getpid() != owner:
        return
    machine, keeping = processes
    machine.kill()
    machine.wait()
    keeping.wait()  # it sees the machine's end
