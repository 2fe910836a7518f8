"""A comparison as pictures: learning against forgetting, and each metric against the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from gradsift.comparison.arms import BASE
from gradsift.evaluation.metrics import METRICS

PLOTS = ("learning-forgetting", "budget")
# Of several metrics of one kind, the first that was measured is drawn.
LEARNT = ("meteor", "chrf", "loss")
FORGOTTEN = ("accuracy", "text_loss")


def plots_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Draw a comparison, given as in its JSON, as SVG by name; without a browser or a network.

    `learning-forgetting` needs a base arm and a general metric, `budget` an arm with a budget.
    """
    # Written by vl-convert, which altair finds by itself.
    import vl_convert

    charts = dict(zip(PLOTS, (_plane(summary["arms"]), _by_budget(summary["arms"])), strict=True))
    return {
        name: vl_convert.vegalite_to_svg(chart.to_dict())
        for name, chart in charts.items()
        if chart is not None
    }


def _plane(arms: Mapping[str, Any]) -> alt.LayerChart | None:
    trained = next((arm for label, arm in arms.items() if label != BASE), None)
    if trained is None or BASE not in arms:
        return None
    learnt = next(name for name in LEARNT if name in trained["levels"])
    forgotten = next((name for name in FORGOTTEN if name in trained["forgotten"]), None)
    if forgotten is None:
        return None
    of_base = {"value": 0, "low": 0, "high": 0}
    points = [
        {
            "arm": label,
            **_ends("x", of_base if label == BASE else arm["forgotten"][forgotten]),
            **_ends("y", arm["levels"][learnt]),
        }
        for label, arm in arms.items()
    ]
    x_title, y_title = f"forgotten: {METRICS[forgotten].label}", METRICS[learnt].label
    scale = alt.Scale(zero=False)
    x, y = alt.X("x:Q", title=x_title, scale=scale), alt.Y("y:Q", title=y_title, scale=scale)
    chart = alt.Chart(alt.Data(values=points)).encode(
        color=alt.Color("arm:N", sort=None, title=None)
    )
    rule = chart.mark_rule(opacity=0.5)
    return alt.layer(
        rule.encode(x=alt.X("x_low:Q", title=x_title), x2="x_high:Q", y=y),
        rule.encode(x=x, y=alt.Y("y_low:Q", title=y_title), y2="y_high:Q"),
        chart.mark_point(filled=True, size=70).encode(x=x, y=y),
    ).properties(width=420, height=300, title="learning against forgetting, 95 % intervals")


def _by_budget(arms: Mapping[str, Any]) -> alt.HConcatChart | None:
    if all(arm["budget"] is None for arm in arms.values()):
        return None
    metrics = next(iter(arms.values()))["levels"]
    return alt.hconcat(*(_panel(arms, metric) for metric in metrics))


def _panel(arms: Mapping[str, Any], metric: str) -> alt.LayerChart:
    title = METRICS[metric].label
    points = [
        {
            "arm": arm["family"],
            "budget": arm["budget"] or ("none" if label == BASE else "all"),
            **_ends("y", arm["levels"][metric]),
        }
        for label, arm in arms.items()
    ]
    chart = alt.Chart(alt.Data(values=points)).encode(
        x=alt.X("budget:N", sort=None, title="budget", axis=alt.Axis(labelAngle=0)),
        xOffset=alt.XOffset("arm:N", sort=None),
        color=alt.Color("arm:N", sort=None, title=None),
    )
    rule = chart.mark_rule(opacity=0.5).encode(y=alt.Y("y_low:Q", title=title), y2="y_high:Q")
    y = alt.Y("y:Q", title=title, scale=alt.Scale(zero=False))
    point = chart.mark_point(filled=True, size=60).encode(y=y)
    return alt.layer(rule, point).properties(width=180, height=200)


def _ends(name: str, estimate: Mapping[str, float | None]) -> dict[str, float | None]:
    # Where there is no interval, no line is drawn.
    low, high = estimate["low"], estimate["high"]
    return {name: estimate["value"], f"{name}_low": low, f"{name}_high": high}
