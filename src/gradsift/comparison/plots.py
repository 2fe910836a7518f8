"""A comparison as pictures: learning against forgetting, and each metric against the budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt

from gradsift.evaluation.metrics import GENERAL, LEARNING, METRICS

BASE = "base"
PLOTS = ("learning-forgetting", "budget")
# Of several metrics of one kind, the first that was measured is drawn.
LEARNT = ("meteor", "loss")
FORGOTTEN = ("accuracy", "text_loss")


def plots_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Draw a comparison, without a browser or a network.

    Args:
        summary: As `comparison.json` holds it.

    Returns:
        SVG by name: `learning-forgetting` where there is a base arm and a general metric, and
        `budget` where an arm has a budget.
    """
    # Written by vl-convert, which altair finds by itself.
    import vl_convert

    charts = dict(zip(PLOTS, (_plane(summary), _by_budget(summary)), strict=True))
    return {
        name: vl_convert.vegalite_to_svg(chart.to_dict())
        for name, chart in charts.items()
        if chart is not None
    }


def _plane(summary: Mapping[str, Any]) -> alt.LayerChart | None:
    arms = summary["arms"]
    some = next((arm for label, arm in arms.items() if label != BASE), None)
    if some is None or BASE not in arms:
        return None
    learnt = next(name for name in LEARNT if name in some["levels"])
    forgot = next((name for name in FORGOTTEN if name in some["forgotten"]), None)
    if forgot is None:
        return None
    at_base = {"value": 0, "low": 0, "high": 0}
    points = [
        {
            "arm": label,
            **_ends("x", at_base if label == BASE else arm["forgotten"][forgot]),
            **_ends("y", arm["levels"][learnt]),
        }
        for label, arm in arms.items()
    ]
    x, y = f"forgotten: {METRICS[forgot].label}", METRICS[learnt].label
    scale = alt.Scale(zero=False)
    at_x, at_y = alt.X("x:Q", title=x, scale=scale), alt.Y("y:Q", title=y, scale=scale)
    chart = alt.Chart(alt.Data(values=points)).encode(
        color=alt.Color("arm:N", sort=None, title=None)
    )
    rule = chart.mark_rule(opacity=0.5)
    return alt.layer(
        rule.encode(x=alt.X("x_low:Q", title=x), x2="x_high:Q", y=at_y),
        rule.encode(x=at_x, y=alt.Y("y_low:Q", title=y), y2="y_high:Q"),
        chart.mark_point(filled=True, size=70).encode(x=at_x, y=at_y),
    ).properties(width=420, height=300, title="learning against forgetting, 95 % intervals")


def _by_budget(summary: Mapping[str, Any]) -> alt.HConcatChart | None:
    arms = summary["arms"]
    if not any(arm["budget"] is not None for arm in arms.values()):
        return None
    some = next(iter(arms.values()))
    names = [name for name in some["levels"] if METRICS[name].kind in (LEARNING, GENERAL)]
    panels = []
    for name in names:
        points = [
            {
                "arm": ":".join([arm["name"], *(f"{k}={v}" for k, v in arm["settings"].items())]),
                "budget": arm["budget"] or ("none" if label == BASE else "all"),
                **_ends("y", arm["levels"][name]),
            }
            for label, arm in arms.items()
        ]
        chart = alt.Chart(alt.Data(values=points)).encode(
            x=alt.X("budget:N", sort=None, title="budget", axis=alt.Axis(labelAngle=0)),
            xOffset=alt.XOffset("arm:N", sort=None),
            color=alt.Color("arm:N", sort=None, title=None),
        )
        y = alt.Y("y:Q", title=METRICS[name].label, scale=alt.Scale(zero=False))
        rule = chart.mark_rule(opacity=0.5).encode(
            y=alt.Y("y_low:Q", title=METRICS[name].label), y2="y_high:Q"
        )
        panels.append(
            alt.layer(rule, chart.mark_point(filled=True, size=60).encode(y=y)).properties(
                width=180, height=200
            )
        )
    return alt.hconcat(*panels)


def _ends(name: str, found: Mapping[str, float | None]) -> dict[str, float | None]:
    # Where there is no interval, no line is drawn.
    return {name: found["value"], f"{name}_low": found["low"], f"{name}_high": found["high"]}
