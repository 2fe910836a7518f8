"""A captured run, and what was compared from it."""

from comparing import finished, fresh_run, log, world

__all__ = ["finished", "fresh_run", "log", "world"]
