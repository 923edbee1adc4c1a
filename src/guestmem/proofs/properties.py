"""What is asked of every rule. A mapping "by the rule alone" is one that nothing but ``Rule.fault_order`` limits."""

from __future__ import annotations

from guestmem.proofs import bounds, changes
from guestmem.proofs.claims import TOUCHED, VALID, Property

__all__ = ("PROPERTIES",)

_FIXED = "the backing takes pages of the size asked for at creation, or smaller ones"


PROPERTIES: tuple[Property, ...] = (
    Property(
        "bounded",
        "a folio, mapped at the level the rule alone allows, stays inside the bound range",
        (VALID, TOUCHED, _FIXED),
        bounds.bounded,
        bounds.explain_bounded,
    ),
    Property(
        "begins-inside",
        "a folio no larger than the slot, mapped at the level the rule alone allows, begins inside the bound range",
        (VALID, TOUCHED, _FIXED, "the folio is no larger than the slot"),
        bounds.begins_inside,
        bounds.explain_begins_inside,
    ),
    Property(
        "bounded-in-slot",
        "with KVM's own check that the block lies in the slot, in guest-physical space, a mapping stays inside",
        (VALID, TOUCHED, _FIXED),
        bounds.bounded_in_slot,
        bounds.explain_bounded_in_slot,
    ),
    Property(
        "bounded-in-model",
        "with all limits of the model, containment among them, a mapping stays inside the bound range",
        (VALID, TOUCHED, _FIXED, "attributes are uniform, no page is poisoned"),
        bounds.bounded_in_model,
        bounds.explain_bounded_in_model,
    ),
    Property(
        "complete",
        "every huge frame wholly inside an accepted slot can be mapped huge, as far as the file's pages are that large",
        (VALID, TOUCHED, _FIXED, "the folio has the size asked for", "attributes are uniform, no page is poisoned"),
        bounds.complete,
        bounds.explain_complete,
    ),
    Property(
        "lossless",
        "as complete, for the frames at which GPA and offset agree modulo the level",
        (VALID, TOUCHED, _FIXED, "the folio has the size asked for", "GPA and offset agree modulo the level"),
        bounds.lossless,
        bounds.explain_complete,
    ),
    Property(
        "congruent",
        "GPA and offset agree modulo the level wherever the rule alone allows a huge mapping",
        (VALID, TOUCHED, _FIXED),
        bounds.congruent,
        bounds.explain_congruent,
    ),
    Property(
        "congruent-in-slot",
        "as congruent, for the mappings that KVM's own check that the block lies in the slot lets through",
        (VALID, TOUCHED, _FIXED, "GPA and userspace_addr agree"),
        bounds.congruent_in_slot,
        bounds.explain_congruent_in_slot,
    ),
    Property(
        "monotone",
        "a slot accepted with one page size is accepted with every larger one (migration to a host of larger pages)",
        (VALID, "the file's size is a multiple of both page sizes"),
        changes.monotone,
        changes.explain_monotone,
    ),
    Property(
        "monotone-levels",
        "a slot accepted is accepted once the architecture maps one more, larger page (on x86-64: 512G)",
        (VALID, "the file and its backing stay as they are"),
        changes.monotone_levels,
        changes.explain_monotone_levels,
    ),
    Property(
        "stable",
        "begins-inside still holds after the backing's page size was changed to any other",
        (
            VALID,
            TOUCHED,
            "the backing had any page size when the slot was set",
            "the folio is no larger than the slot",
        ),
        changes.stable,
        changes.explain_stable,
    ),
    Property(
        "stable-in-file",
        "as stable, if the backing never takes pages larger than the size asked for at creation",
        (VALID, TOUCHED, "folios are no larger than the page size asked for", "nor than the slot"),
        changes.stable_in_file,
        changes.explain_stable,
    ),
    Property(
        "offset-0",
        "offset 0 is accepted",
        (VALID, "the offset is 0"),
        changes.offset_0,
        changes.explain_offset_0,
    ),
    Property(
        "no-wrap",
        "no sum or shift of the rule's own code exceeds 64 bits",
        (VALID, TOUCHED),
        changes.no_wrap,
        changes.explain_no_wrap,
    ),
)
