"""The real backend: the calls of ``guestmem.backend`` on this machine's /dev/kvm.

Only this package touches ctypes, ioctl, mmap or a descriptor.
"""

from guestmem.kvm.process import KvmBackend

__all__ = ("KvmBackend",)
