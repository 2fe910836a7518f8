"""What messages show of lists, values and errors: not more than a person wants to read."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable

# What a terminal obeys, or shows as other than it is: control characters (C0, DEL, C1), separators
# of lines, what turns the direction of writing, what is not seen at all (but U+200C and U+200D,
# which words and signs are made with); and halves of characters, which cannot be printed.
_NOT_TO_BE_PRINTED = (
    "\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e007f"
)
_CONTROL = re.compile(f"[{_NOT_TO_BE_PRINTED}]")
_CONTROL_BUT_NEWLINE = re.compile(f"(?!\n)[{_NOT_TO_BE_PRINTED}]")


def in_line(value: object) -> str:
    r"""Return a value from data as a line may show it: control characters as \x1b, \n, \u202e."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], str(value))


def printable(text: str) -> str:
    """Return a text of several lines as a terminal may be given it; its lines stay."""
    return _CONTROL_BUT_NEWLINE.sub(lambda match: ascii(match[0])[1:-1], text)


def joined(lines: Iterable[str]) -> str:
    """Return lines as one text, in which nothing that data put into a line ends it."""
    return "\n".join(map(in_line, lines))


def printable_json(text: str) -> str:
    r"""Return JSON that says the same, with control characters inside its texts as \u009b."""
    # JSON counts in units of UTF-16.
    return _CONTROL_BUT_NEWLINE.sub(
        lambda match: re.sub(
            r"....", r"\\u\g<0>", match[0].encode("utf-16-be", "surrogatepass").hex()
        ),
        text,
    )


def one_line(error: object) -> str:
    """Return what an error of a library says in a line: its lines are joined, and no more.

    A name in it stays as it is, so that it can be used once it is escaped.
    """
    return re.sub(r"(?:[ \t]*\n)+[ \t]*", " ", str(error).strip()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]


def few(names: Iterable[object], n: int = 20) -> str:
    """Return a sorted list of names, as messages say it, cut where it gets long."""
    names = sorted(str(name)[:50] for name in names)
    more = f" and {len(names) - n} more" if len(names) > n else ""
    return f"{names[:n]}{more}"


def counted(n: int, noun: str) -> str:
    """Return a number of things: "1 row", "2 rows"."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def short(text: object, n: int = 200) -> str:
    """Return what messages show of a text: one line, and no more than its first characters."""
    text = str(text)
    # Only the beginning is split into words: a value may be as long as a file.
    line = re.sub(r"[ \t\n]+", " ", text[: 2 * n].strip(" \t\n"))
    line = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
    return line if len(text) <= 2 * n and len(line) <= n else line[:n] + "…"


def clipped(text: object, width: int) -> str:
    """Return a text as one line of so many columns of a terminal, cut with … where it is longer.

    Blanks and ends of lines are one blank; what a terminal obeys is shown as in `in_line`.
    """
    from rich.cells import cell_len, set_cell_size

    # Only the beginning is looked at: a text may be as long as a file.
    text = str(text)
    line = in_line(" ".join(text[: 4 * width].split()))
    if cell_len(line) <= width and len(text) <= 4 * width:
        return line
    return set_cell_size(line, width - 1).rstrip() + "…"


def columns_of_terminal() -> int:
    """Return how wide the terminal is; 100 columns where there is none."""
    return max(40, shutil.get_terminal_size((100, 24)).columns)
