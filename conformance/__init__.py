"""The kernel's own KVM selftests, built from its source and run on the model and on the kernel: see docs/exec.md.

The source is a distribution package or the user's; nothing of it enters the repository.
"""
