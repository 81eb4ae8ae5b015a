"""The REST service: bytes in, prediction out."""

from importlib.metadata import version

__version__ = version("headway")
