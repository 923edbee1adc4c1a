"""The alignment rules: how the offset of a binding into its file must be aligned, as proposed on the kernel lists.

KVM asks the file for a page by offset; the backing takes the huge page that contains the offset, rounding *down*. If
the binding's offset is not "sanely" aligned, that page may begin before the bound range. Each class here is one answer
to how sane is sane, with who gave it and when. A rule speaks twice:

- ``refuses``, when the slot is set: None to accept, else why not;
- ``fault_order``, when a page is mapped: the largest order that the rule *alone* would allow for a folio.

No rule is trusted to keep a mapping inside the binding; the model checks that itself, so a loose rule loses huge pages
or (``as posted``) would have lost more. Each mail is found on lore.kernel.org by its message_id.
"""

from __future__ import annotations

from guestmem.errors import InputError
from guestmem.rules.guest_memfd import (
    BothMultiples,
    Congruent,
    Contained,
    ContainedAsPosted,
    Upstream,
    WholeBinding,
)
from guestmem.rules.own import is_own, own_rule
from guestmem.rules.restrictedmem import (
    CreationFlags,
    CurrentBacking,
    FitsSize,
    GpaAlignment,
    GpaAlignmentByHighestBit,
    GpaPage,
    JanuaryAsWritten,
    LargestBackingOrSize,
    NoRule,
    OrMetadata,
    SizeAndGpa,
    SlotMetadata,
)
from guestmem.rules.rule import Binding, Rule, congruent
from guestmem.text import no_such

__all__ = (
    "DEFAULT",
    "RULES",
    "Binding",
    "BothMultiples",
    "Congruent",
    "Contained",
    "ContainedAsPosted",
    "CreationFlags",
    "CurrentBacking",
    "FitsSize",
    "GpaAlignment",
    "GpaAlignmentByHighestBit",
    "GpaPage",
    "JanuaryAsWritten",
    "LargestBackingOrSize",
    "NoRule",
    "OrMetadata",
    "Rule",
    "SizeAndGpa",
    "SlotMetadata",
    "Upstream",
    "WholeBinding",
    "congruent",
    "rule_named",
)

RULES: tuple[Rule, ...] = (
    OrMetadata(),
    JanuaryAsWritten(),
    GpaAlignment(),
    GpaPage(),
    GpaAlignmentByHighestBit(),
    SlotMetadata(),
    FitsSize(),
    SizeAndGpa(),
    LargestBackingOrSize(),
    CurrentBacking(),
    CreationFlags(),
    BothMultiples(),
    WholeBinding(),
    Contained(),
    ContainedAsPosted(),
    Upstream(),
    Congruent(),
)
DEFAULT: Rule = SlotMetadata()


def rule_named(name: str) -> Rule:
    """Find a rule by name ("none" is one), or in a file by FILE.py:NAME; InputError lists the names."""
    if is_own(name):
        return own_rule(name)
    for rule in (*RULES, NoRule()):
        if rule.name == name:
            return rule
    raise InputError(no_such("rule", name, (rule.name for rule in RULES), "and FILE.py:NAME"))
