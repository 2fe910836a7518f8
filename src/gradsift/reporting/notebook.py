"""A selection in a notebook: the sentences of its page, and its charts as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from gradsift.errors import GradsiftError
from gradsift.reporting.charts import Chart, one_below_the_other, standalone
from gradsift.reporting.rows import Rows
from gradsift.reporting.story import Story, story_of
from gradsift.wording import few

if TYPE_CHECKING:
    import altair as alt

# What a notebook shows of itself; `plot` draws any.
SHOWN = ("why", "loss", "map")
NO_ALTAIR = "plot() needs the package altair: pip install 'gradsift[compare]'"


def html_of(rows: Rows, page: str | None) -> str:
    """Return what a notebook shows of a selection; `page` is where its page is."""
    story = story_of(rows.run, rows)
    lines = [f"<b>{escape(story.decision)}</b> {escape(story.kind)}"]
    lines += [f"⚠ {escape(line)}" for line in story.warnings]
    facts = "".join(
        f"<tr><td>{escape(one.name)}</td><td>{escape(one.kept)}</td><td>{escape(one.pool)}</td></tr>"
        for one in story.figures
    )
    table = f"<table><tr><th></th><th>kept</th><th>all rows</th></tr>{facts}</table>"
    pictures = "".join(map(_picture, chosen(story, SHOWN, strict=False)))
    where = "" if page is None else f"<p>All rows and charts: {escape(page)}</p>"
    return "".join(f"<p>{line}</p>" for line in lines) + table + pictures + where


def chosen(story: Story, names: Sequence[str], *, strict: bool) -> list[Chart]:
    """Return charts by name; all of them for no name.

    Raises:
        GradsiftError: For a name that none has, if that is `strict`.
    """
    there = {chart.key: chart for chart in (*story.charts, *story.comparison)}
    unknown = [name for name in names if name not in there]
    if strict and unknown:
        raise GradsiftError(f"there is no chart {few(unknown)}; there are: {few(there)}")
    return [there[name] for name in names or there if name in there]


def drawn(rows: Rows, names: Sequence[str]) -> alt.VConcatChart:
    """Return charts of a selection, by name or all, one below the other.

    Raises:
        GradsiftError: For a name that none has, or if altair is missing.
    """
    try:
        import altair as alt
    except ImportError:
        raise GradsiftError(NO_ALTAIR) from None
    charts = chosen(story_of(rows.run, rows), names, strict=True)
    specs = [
        {**spec, "title": chart.title * (at == 0)}
        for chart in charts
        for at, spec in enumerate(chart.specs)
    ]
    return alt.VConcatChart.from_dict(one_below_the_other(specs))


def _picture(chart: Chart) -> str:
    try:
        import vl_convert
    except ImportError:  # Of the extra "compare".
        return ""
    svg = "".join(vl_convert.vegalite_to_svg(standalone(spec)) for spec in chart.specs)
    title, note = escape(chart.title), escape(chart.note)
    return f"<figure><figcaption><b>{title}</b> {note}</figcaption>{svg}</figure>"
