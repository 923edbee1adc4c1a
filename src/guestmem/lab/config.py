"""The configuration of the lab's kernel: a fragment, and what a build made of it.

The fragment is ``minimal.config`` in this directory; ``make allnoconfig`` completes it. An option that a source does
not offer is silently dropped there, so what came out is compared with what was asked.
"""

from __future__ import annotations

import hashlib
from importlib import resources

__all__ = ("REQUIRED", "config_key", "fragment", "missing")

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


def fragment() -> str:
    """The text of the fragment."""
    return resources.files("guestmem.lab").joinpath("minimal.config").read_text()


def config_key(text: str) -> str:
    """Twelve hex digits that change when, and only when, an option does: comments and order do not count.

    >>> config_key("CONFIG_A=y\\nCONFIG_B=n\\n") == config_key("# why\\nCONFIG_B=n\\nCONFIG_A=y")
    True
    """
    canonical = "\n".join(f"{name}={value}" for name, value in sorted(_options(text).items()))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def missing(asked: str, made: str) -> tuple[str, ...]:
    """Options whose value in a finished .config is not the one that was asked for.

    >>> missing("CONFIG_A=y\\nCONFIG_B=n", "CONFIG_A=y\\n# CONFIG_B is not set"), missing("CONFIG_A=y", "CONFIG_A=m")
    ((), ('CONFIG_A',))
    """
    result = _options(made)
    return tuple(name for name, value in _options(asked).items() if result.get(name, "n") != value)


def _options(text: str) -> dict[str, str]:
    options = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            name, _, value = line.strip().partition("=")
            options[name] = value
    return options
