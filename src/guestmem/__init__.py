"""KVM's guest-private memory, in Python: memory you can run, check and prove."""
