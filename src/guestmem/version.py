"""The package's version, read by the build and by ``guestmem --version``."""

__version__ = "0.1.0"
