"""The version of gradsift, written once."""

__version__ = "0.1.0"
