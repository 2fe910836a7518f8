"""What messages show of lists, values and errors: not more than a person wants to read."""

from __future__ import annotations

from collections.abc import Iterable


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def few(names: Iterable[object], n: int = 20) -> str:
    """Return a sorted list of names, as messages say it, cut where it gets long."""
    names = sorted(str(name)[:50] for name in names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return f"{names[:n]}{more}"


def short(text: object, n: int = 200) -> str:
    """Return what messages show of a text: one line, and no more than its first characters."""
    text = str(text)
    # Only the beginning is split into words: a value may be as long as a file.
    line = " ".join(text[: 2 * n].split())
    line = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
    return line if len(text) <= 2 * n and len(line) <= n else line[:n] + "…"
