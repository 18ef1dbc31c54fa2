"""The version of fmeco."""

__version__ = "0.1.0"
