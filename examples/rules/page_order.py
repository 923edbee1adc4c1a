"""A rule of one's own. What does it keep? guestmem prove --rule examples/rules/page_order.py:PageOrder"""

from guestmem.rules import Binding, Rule


class PageOrder(Rule):
    """The offset is a multiple of the page size asked for at creation, unless the slot is smaller than such a page."""

    def refuses(self, binding: Binding) -> str | None:
        if binding.size < binding.page_size or binding.offset % binding.page_size == 0:
            return None
        return f"offset {binding.offset:#x} is not a multiple of {binding.page_size:#x}"
