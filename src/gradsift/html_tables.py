"""Tables for notebooks: plain HTML in which what rows say is text, whatever it says."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from gradsift.wording import in_line, short

# Of a cell, in characters.
WIDEST = 120


def html_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table under a line that says what it is; every cell is escaped, and cut."""
    lines = [f"<p>{_escaped(title, 4 * WIDEST)}</p>", "<table>"]
    lines.append(f"<thead><tr>{_cells('th', head)}</tr></thead>")
    lines += ["<tbody>", *(f"<tr>{_cells('td', row)}</tr>" for row in rows), "</tbody>"]
    return "\n".join([*lines, "</table>"])


def html_list(items: Iterable[str]) -> str:
    """Return lines as a list, escaped."""
    return "<ul>" + "".join(f"<li>{_escaped(item, 8 * WIDEST)}</li>" for item in items) + "</ul>"


def _cells(tag: str, values: Iterable[object]) -> str:
    return "".join(f"<{tag}>{_escaped(_shown(value))}</{tag}>" for value in values)


def _shown(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else value


def _escaped(value: object, n: int = WIDEST) -> str:
    # Not alone HTML's own: what turns the direction of writing would turn the rest of the page.
    return html.escape(in_line(short(value, n)))
