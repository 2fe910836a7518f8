"""A selection as one HTML file that needs nothing else: no network, no server, no other file.

What rows say is data: it stands in blocks of JSON that no browser runs, and is shown as text only.
The policy of the page (CSP) lets run nothing but its own scripts, named by their SHA-256, and fetch
nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
import pyarrow.compute as pc

from gradsift.data.texts import asked_first
from gradsift.reporting.charts import COLOURS, Chart
from gradsift.reporting.rows import Rows
from gradsift.reporting.sampling import shown_length, stratified
from gradsift.reporting.story import Story
from gradsift.reporting.wording import n_rows
from gradsift.version import __version__

SCRIPTS = (
    "vega.min.js",
    "vega-lite.min.js",
    "vega-embed.min.js",
    "tabulator.min.js",
    "page.js",
)
STYLES = ("tabulator_simple.min.css", "page.css")
# A page holds the numbers of so many rows, and the texts of all of them up to MOST_WHOLE, above of
# a sample of so many.
MOST_LISTED = 200_000
MOST_WHOLE = 20_000
MOST_TEXTS = 5_000
# Characters of all texts together; longer ones are cut.
MOST_CHARACTERS = 12_000_000
_TEXTS = ("prompt", "response")
# By which a page is known, among its first bytes.
MARK = '<meta name="generator" content="gradsift">'
_DECISIONS = ("selected", "rejected", "dropped")
# Such as a browser might take for the end of a script, or an old one for the end of a line.
_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_SOURCE_MAP = re.compile(r"\n//# sourceMappingURL=\S+|/\*# sourceMappingURL=\S+ \*/")


def page_of(title: str, rows: Rows, story: Story, id_column: str) -> str:
    """Return the page of a selection; `title` names the run, `id_column` the rows' id."""
    listed_R = listed_rows(rows)
    scripts = [_asset(name) for name in SCRIPTS]
    styles = [_asset(name) for name in STYLES]
    policy = (
        "default-src 'none'; "
        f"script-src {' '.join(map(_hash, scripts))}; style-src {' '.join(map(_hash, styles))}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    at = {row: n for n, row in enumerate(listed_R.tolist())}
    data = {
        "columns": columns_of(rows, listed_R, story.group_names),
        "charts": {chart.key: list(chart.specs) for chart in (*story.charts, *story.comparison)},
        "colours": list(COLOURS),
        "examples": {
            name: [
                {"at": at[one], "asked": asked_first(rows.table["prompt"][one].as_py() or "")[:500]}
                for one in of.rows
                if one in at
            ]
            for name, of in (("kept", story.kept), ("rejected", story.rejected))
        },
        "id_column": id_column,
    }
    return Template(_asset("page.html")).substitute(
        mark=MARK,
        policy=policy,
        title=escape(f"{title}: {rows.name}"),
        run=escape(title),
        name=escape(rows.name),
        styles="".join(f"<style>{style}</style>" for style in styles),
        scripts="".join(f"<script>{script}</script>" for script in scripts),
        data=inert_json(data),
        decision=escape(story.decision),
        kind=f"<p>{escape(story.kind)}</p>" if story.kind else "",
        details=" ".join(map(escape, story.details)),
        kept_title=escape(story.kept.title),
        rejected_title=escape(story.rejected.title),
        warnings=_warnings(story.warnings),
        figures="".join(
            f'<div class="figure"><dt>{escape(one.name)}</dt><dd>{escape(one.kept)}'
            + (f"<small>all rows {escape(one.pool)}</small>" if one.pool else "")
            + "</dd></div>"
            for one in story.figures
        ),
        charts="".join(map(_card, story.charts)),
        compared=_compared(story),
        compared_link=' <a href="#compared">Comparison</a>' * bool(story.verdicts),
        held=escape(held_note(rows, listed_R)),
        rows_title="All " * (len(rows) > 1) + n_rows(len(rows)),
        version=escape(__version__),
        licences=escape(_asset("LICENCES.txt")),
    )


def inert_json(value: Any) -> str:
    """Return JSON that can stand inside a script element of HTML, whatever texts it holds."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # Halves of characters are no UTF-8.
    text = re.sub(r"[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text)
    for character, escaped in _UNSAFE.items():
        text = text.replace(character, escaped)
    return text


def listed_rows(rows: Rows) -> np.ndarray:
    """Return the positions of the rows that the page lists: all, of very many a sample."""
    return stratified(_stratum(rows), MOST_LISTED)


def columns_of(rows: Rows, listed_R: np.ndarray, group_names: Mapping[int, str]) -> dict[str, Any]:
    """Return the rows of the page, column by column; what is none is null."""
    table = rows.table.take(listed_R)

    def texts(name: str) -> list[Any]:
        return table[name].to_pylist()

    def numbers(value_N: np.ndarray, digits: int) -> list[float | None]:
        value_R = np.round(value_N[listed_R], digits)
        return [
            value if ok else None
            for value, ok in zip(value_R.tolist(), np.isfinite(value_R).tolist(), strict=True)
        ]

    ids = texts("instance_id")
    at = {one: n for n, one in enumerate(ids)}
    nearest = texts("nearest_selected")
    groups = [None if one is None else group_names.get(one) for one in texts("cluster")]
    with_text = np.zeros(len(rows), dtype=bool)
    with_text[texted_rows(rows, listed_R)] = True
    text_R = with_text[listed_R].tolist()
    cut = _characters(rows, listed_R[with_text[listed_R]])

    def shown(name: str, most: int | None = None) -> list[str | None]:
        return [
            None
            if one is None or not has
            else one
            if most is None or len(one) <= most
            else one[:most] + "…"
            for one, has in zip(texts(name), text_R, strict=True)
        ]

    return {
        "id": ids,
        "decision": [_DECISIONS.index(one) for one in texts("decision")],
        "rank": texts("rank"),
        "score": numbers(rows.numbers("gradient_score"), 3),
        "loss": numbers(rows.numbers("loss"), 3),
        "tokens": texts("n_response_tokens"),
        "similarity": numbers(rows.numbers("nearest_similarity"), 2),
        # Those that a list may name: what the gate alone dropped may be kept all the same.
        "usable": [int(one) for one in np.isfinite(rows.numbers("density_pct")[listed_R]).tolist()],
        "border": [int(one) for one in rows.borderline_N[listed_R].tolist()],
        "nearest": [None if one is None else at.get(one, one) for one in nearest],
        "source": _coded(texts("source")),
        "language": _coded(texts("language")),
        "group": _coded(groups),
        "reason": shown("reason"),
        "prompt": shown("prompt", cut),
        "answer": shown("response", cut),
    }  # fmt: skip


def texted_rows(rows: Rows, listed_R: np.ndarray) -> np.ndarray:
    """Return the positions of the listed rows whose texts the page holds."""
    if len(rows) <= MOST_WHOLE:
        return listed_R
    return listed_R[stratified(_stratum(rows)[listed_R], MOST_TEXTS)]


def held_note(rows: Rows, listed_R: np.ndarray) -> str:
    """Say what of the rows the page holds."""
    texted_R = texted_rows(rows, listed_R)
    cut = _characters(rows, texted_R)
    longest = max((_lengths(rows, name, texted_R).max(initial=0) for name in _TEXTS), default=0)
    lines = []
    if len(listed_R) < len(rows):
        lines.append(f"The table lists {len(listed_R):,} of {len(rows):,} rows, drawn from every "
                     "decision and group; figures and charts above are of all.")  # fmt: skip
    if len(texted_R) < len(listed_R):
        lines.append(f"It holds the numbers of all {len(listed_R):,} rows, and the texts and "
                     f"reasons of {len(texted_R):,}, drawn from every decision and group: search "
                     "finds words in these. decisions.parquet has all.")  # fmt: skip
    if longest > cut:
        lines.append(f"Texts are cut after {cut:,} characters.")
    return " ".join(lines)


def _characters(rows: Rows, texted_R: np.ndarray) -> int:
    lengths = np.concatenate([_lengths(rows, name, texted_R) for name in _TEXTS])
    return max(1, shown_length(lengths, MOST_CHARACTERS))


def _lengths(rows: Rows, name: str, rows_R: np.ndarray) -> np.ndarray:
    return pc.fill_null(pc.utf8_length(rows.table[name].take(rows_R)), 0).to_numpy()


def _stratum(rows: Rows) -> np.ndarray:
    """Number decisions in groups of content, rows at the cut apart."""
    group_N = np.nan_to_num(rows.numbers("cluster"), nan=-1).astype(int) + 1
    decision_N = rows.kept_N + 2 * rows.dropped_N + 3 * rows.borderline_N
    return 6 * group_N + decision_N


def _coded(values: Sequence[str | None]) -> dict[str, Any]:
    """Return names once, and for each row which it has; −1 for none."""
    names = {name: n for n, name in enumerate(sorted({one for one in values if one is not None}))}
    return {"names": list(names), "of": [-1 if one is None else names[one] for one in values]}


def _card(chart: Chart) -> str:
    wide = " wide" * chart.wide
    figures = "".join('<div class="chart" role="img" aria-label="'
                      f'{escape(chart.title)}"></div>' for _ in chart.specs)  # fmt: skip
    return (
        f'<figure class="card{wide}" id="chart-{escape(chart.key)}"><h3>{escape(chart.title)}</h3>'
        f"{figures}<figcaption>{escape(chart.note)}</figcaption></figure>"
    )


def _warnings(lines: Sequence[str]) -> str:
    if not lines:
        return '<p class="fine">No warnings.</p>'
    items = "".join(f"<li>{_with_code(line)}</li>" for line in lines)
    return f'<ul class="warnings" aria-label="warnings">{items}</ul>'


def _with_code(line: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(line))


def _compared(story: Story) -> str:
    if not story.verdicts:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in story.verdicts)
    cards = "".join(map(_card, story.comparison))
    return (
        '<section id="compared"><h2>What models learnt from it</h2>'
        f'<ul class="verdicts">{items}</ul><div class="cards">{cards}</div></section>'
    )


def _asset(name: str) -> str:
    text = files("gradsift.reporting").joinpath("assets", name).read_text(encoding="utf-8")
    # Of a file that is not there, which a browser's tools would ask for.
    return _SOURCE_MAP.sub("", text)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"
