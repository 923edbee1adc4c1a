"""The yardstick: no rule at all, which is what the discussion started from."""

from __future__ import annotations

from guestmem.rules import RULES, Rule

__all__ = ("ASKED", "NoRule", "asked_named")


class NoRule(Rule):
    """Every slot is accepted and nothing limits a mapping."""

    __slots__ = ()
    name = "none"
    author = ""
    date = ""
    message_id = ""
    statement = "every offset is accepted and every folio is mapped whole"
    fate = "the state of things that the discussion started from"


ASKED: tuple[Rule, ...] = (NoRule(), *RULES)
"""The rows of the table."""


def asked_named(name: str) -> Rule:
    """Find a rule, or "none"; ValueError lists the names."""
    for rule in ASKED:
        if rule.name == name:
            return rule
    raise ValueError(f"no rule {name!r}; there are {', '.join(rule.name for rule in ASKED)}")
