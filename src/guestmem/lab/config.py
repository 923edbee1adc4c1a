"""The configuration of the lab's kernel: a fragment, and what a build made of it.

The fragment is ``minimal.config`` in this directory; ``make allnoconfig`` completes it. An option that a source does
not offer is silently dropped there, so what came out is compared with what was asked. Options that later kernels have
under another name are asked for under both.
"""

from __future__ import annotations

import hashlib
from importlib import resources

__all__ = ("MOVED", "REQUIRED", "asked_for", "config_key", "fragment", "missing")

# Without these a kernel boots to nothing that can be used; the others only make it poorer.
REQUIRED = (
    "CONFIG_KVM",
    "CONFIG_KVM_AMD",
    "CONFIG_KVM_SW_PROTECTED_VM",
    "CONFIG_PVH",
    "CONFIG_BLK_DEV_INITRD",
    "CONFIG_DEVTMPFS",
    "CONFIG_BINFMT_SCRIPT",
    "CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES",
    "CONFIG_VIRTIO_CONSOLE",
)
# What does the same in later kernels: /proc/sys from 7.3 on, and the only preemption that 7.2 left beside full on x86.
MOVED = {"CONFIG_PROC_SYSCTL": "CONFIG_SYSCTL", "CONFIG_PREEMPT_VOLUNTARY": "CONFIG_PREEMPT_LAZY"}


def fragment() -> str:
    """The text of the fragment."""
    return resources.files("guestmem.lab").joinpath("minimal.config").read_text()


def asked_for(text: str) -> str:
    """A fragment with what moved under its later names too, as it is given to a source.

    >>> asked_for("CONFIG_PROC_SYSCTL=y\\n")
    'CONFIG_PROC_SYSCTL=y\\nCONFIG_SYSCTL=y\\n'
    """
    options = _options(text)
    later = (f"{new}={options[old]}\n" for old, new in MOVED.items() if old in options and new not in options)
    return text + "".join(later)


def config_key(text: str) -> str:
    """Twelve hex digits that change when, and only when, an option does: comments and order do not count.

    >>> config_key("CONFIG_A=y\\nCONFIG_B=n\\n") == config_key("# why\\nCONFIG_B=n\\nCONFIG_A=y")
    True
    """
    canonical = "\n".join(f"{name}={value}" for name, value in sorted(_options(text).items()))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def missing(asked: str, made: str) -> tuple[str, ...]:
    """Options whose value in a finished .config is not the one that was asked for, under no name.

    >>> missing("CONFIG_A=y\\nCONFIG_B=n", "CONFIG_A=y\\n# CONFIG_B is not set"), missing("CONFIG_A=y", "CONFIG_A=m")
    ((), ('CONFIG_A',))
    """
    result = _options(made)
    return tuple(
        name
        for name, value in _options(asked).items()
        if value not in (result.get(name, "n"), result.get(MOVED.get(name, name), "n"))
    )


def _options(text: str) -> dict[str, str]:
    options = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            name, _, value = line.strip().partition("=")
            options[name] = value
    return options
