"""Process 1 of an emulated machine: loads KVM, runs the story program, and looks at it at every stage.

Prints one line "LOOK {...}" for each reader and stage, then switches the machine off. With the argument "list" it only
imports what it needs and prints the files of it, for the image to be made of.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import msgspec

from guestmem.host.document import HostReport
from guestmem.host.machine import look_at_machine

STAGES = "ABCDEFGHI"
MODULES = ("irqbypass", "kvm", "kvm-amd")
POWER_OFF, FINIT_MODULE = 0x4321FEDC, 313
LIBC = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Everything; whatever happens, the machine goes off."""
    try:
        prepare()
        story()
    except BaseException:
        print("FAILED", json.dumps(traceback.format_exc()), flush=True)
    finally:
        os.sync()
        LIBC.reboot(POWER_OFF)


def prepare() -> None:
    """Mount what is read, and load KVM."""
    for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        Path(place).mkdir(exist_ok=True)
        LIBC.mount(kind.encode(), place.encode(), kind.encode(), 0, None)
    for name in MODULES:
        fd = os.open(f"/modules/{name}.ko", os.O_RDONLY)
        if LIBC.syscall(FINIT_MODULE, fd, b"", 0):
            raise OSError(ctypes.get_errno(), f"{name} cannot be loaded")
        os.close(fd)


def story() -> None:
    """Run the program stage by stage."""
    with subprocess.Popen(["/kvmstory"], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        for stage in STAGES:
            for line in program.stdout:
                if line.startswith(f"ready {stage}"):
                    break
            for reader in ("kcore", "bpf"):
                say(stage, look_at_machine(None, reader))
            program.send_signal(signal.SIGUSR1)


def say(stage: str, report: HostReport) -> None:
    """One line."""
    print("LOOK", json.dumps({"stage": stage, "report": msgspec.to_builtins(report)}), flush=True)


def files() -> None:
    """The files of every module that is loaded."""
    msgspec.json.encode(msgspec.to_builtins({"a": 1}))
    found = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    print("\n".join(sorted(name for name in found if name and name != __file__)))


if __name__ == "__main__":
    if sys.argv[1:] == ["list"]:
        files()
    else:
        main()
