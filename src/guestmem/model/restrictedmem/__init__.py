"""restrictedmem, the system of 2022 and 2023 that guest_memfd replaced: memfd_restricted files behind memslots.

It was posted ten times and never merged, so no kernel answers for it: what is here is read from the patches and the
trees that carried them (docs/restrictedmem.md). ``revision`` has what tells its versions apart, ``shmem`` the host
below, ``file`` the file and what KVM binds to it; ``calls``, ``region``, ``attributes`` and ``fault`` are the system
calls and the guest's accesses. What is as in later kernels is theirs.

Unlike in every other profile a guest may see memory that is not its own: these systems had bugs, and none of their
rules keeps GPA and offset in step. ``check_invariants`` asks here only that the model's own tables agree.
"""
