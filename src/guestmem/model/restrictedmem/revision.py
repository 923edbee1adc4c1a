"""The versions of restrictedmem as data: what tells them apart, and nothing else.

Sources: v10 is "KVM: mm: fd-based approach for supporting KVM", 20221202061347.1070246-1-chao.p.peng@linux.intel.com;
upm is S. Christopherson's rework of 14 January 2023, Y8H5Z3e4hZkFxAVS@google.com; v11c is what C. Peng prepared on top
of it until March 2023 and never posted. Each field is a difference in what user space or a guest can see, most of them
bugs with who named them; docs/restrictedmem.md lists them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from guestmem.uapi import KVM_MEMORY_EXIT_FLAG_PRIVATE

__all__ = ("SEED", "UPM", "V10", "V11C", "Revision")


@dataclass(frozen=True, slots=True)
class Revision:
    """One version of restrictedmem."""

    name: str
    extended_v1: bool  # with KVM_MEM_PRIVATE the v1 ioctl takes 160 bytes; there is no REGION2
    private_with_log_dirty: bool  # a slot may have both flags
    second_address_space: bool  # VMs with private memory have one for SMM, too
    creation_flags: bool  # ours: memfd_restricted takes a page size
    early_rule: bool  # the alignment rule is an argument check: before the file is looked at, and of deletions too
    exclusive: bool  # one binding for each page of a file, over all VMs; else every slot watches all of it
    inclusive_end: bool  # a binding keeps the page after its last one, too
    punch: Literal["underflows", "forgets-offset", "right"]  # which frames of a slot a punched range is taken for
    marks: Literal["lost", "kept"]  # of blocks that are partly private: lost for slots made later and for the 1G level
    page_error: Literal["retry", "errno"]  # what a guest access does that gets no page
    memory_failure: Literal["shutdown", "sigbus"]
    outer_stat: bool  # fstat shows the outer file, which has no size
    exit_flag_private: int  # the bit of kvm_run.memory.flags


V10 = Revision(
    name="v10",
    extended_v1=True,
    private_with_log_dirty=True,
    second_address_space=True,
    creation_flags=False,
    early_rule=False,
    exclusive=False,
    inclusive_end=False,
    punch="underflows",
    marks="lost",
    page_error="retry",
    memory_failure="shutdown",
    outer_stat=True,
    exit_flag_private=1,
)
UPM = replace(
    V10,
    name="upm",
    extended_v1=False,
    private_with_log_dirty=False,
    second_address_space=False,
    exclusive=True,
    inclusive_end=True,
    punch="forgets-offset",
    page_error="errno",
    memory_failure="sigbus",
    outer_stat=False,
    exit_flag_private=KVM_MEMORY_EXIT_FLAG_PRIVATE,
)
V11C = replace(UPM, name="v11c", early_rule=True, marks="kept", outer_stat=True)
# What the mails of April 2023 talk about: upm with the mail of 21 February 2023 that mends ends and offsets, and the
# creation flags that the last of them asks for.
SEED = replace(UPM, name="seed", creation_flags=True, inclusive_end=False, punch="right")
