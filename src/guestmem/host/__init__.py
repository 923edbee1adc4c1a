"""The VMs of this machine, seen from the host: slots, what KVM maps and how large, and why not larger.

Everything is read from the running kernel's memory; no VMM is asked and nothing is changed. Types come from the
kernel's BTF, bytes from /proc/kcore or through a small BPF program. ``guestmem.host.survey`` is the whole look;
``guestmem.host.document`` is what it found, as it is written, saved and read back.
"""
