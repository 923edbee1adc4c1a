"""``python -m guestmem``."""

from guestmem.cli import main

main()
