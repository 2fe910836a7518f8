"""Charts of a comparison, from what `comparison.json` says; better is always up or right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gradsift.evaluation.metrics import GENERAL, LEARNING, METRICS
from gradsift.reporting.charts import (
    FILLS_WIDTH,
    INK,
    KEPT,
    MUTED,
    Spec,
    one_below_the_other,
)

BASE = "base"
# Of several metrics of one kind, the first that was measured is drawn.
LEARNT = ("loss", "meteor", "chrf")
FORGOTTEN = ("accuracy", "text_loss")
# Files beside a comparison.
PICTURES = ("learning-forgetting", "metrics")
_HIGHEST = 100.0  # Of every metric that is a score; losses have no end.


def pictures_of(summary: Mapping[str, Any]) -> dict[str, str]:
    """Draw a comparison, given as in its JSON, as SVG by name; without a browser or a network.

    `learning-forgetting` needs a base arm and a general metric.
    """
    import vl_convert

    plane = learning_against_forgetting(summary["arms"])
    specs = {
        PICTURES[0]: [] if plane is None else [plane],
        PICTURES[1]: arms_by_metric(summary["arms"]),
    }
    return {
        name: vl_convert.vegalite_to_svg(one_below_the_other(of))
        for name, of in specs.items()
        if of
    }


def learning_against_forgetting(arms: Mapping[str, Mapping[str, Any]]) -> Spec | None:
    """Draw each arm by what it learnt and what it forgot, with intervals.

    None where nothing says what was forgotten. Best is the upper right corner, which is said.
    """
    trained = [arm for label, arm in arms.items() if label != BASE]
    if BASE not in arms or not trained:
        return None
    learnt = next((name for name in LEARNT if name in trained[0]["levels"]), None)
    forgotten = next((name for name in FORGOTTEN if name in trained[0]["forgotten"]), None)
    if learnt is None or forgotten is None:
        return None
    of_base = {"value": 0.0, "low": None, "high": None}
    points = [
        {
            "arm": label,
            **_ends("x", of_base if label == BASE else arm["forgotten"][forgotten]),
            **_ends("y", arm["levels"][learnt], _bounds(learnt)),
        }
        for label, arm in arms.items()
    ]
    x_title = f"forgotten: {METRICS[forgotten].label} (→ less)"
    y_title = f"learnt: {METRICS[learnt].label} (↑ better)"
    x_scale = {"zero": False, "reverse": True, "padding": 24}
    y_scale = {"zero": False, "reverse": not METRICS[learnt].higher_is_better, "padding": 24}
    x_axis, y_axis = {"title": x_title, "grid": False}, {"title": y_title, "grid": False}
    x = {"field": "x", "type": "quantitative", "scale": x_scale, "axis": x_axis}
    y = {"field": "y", "type": "quantitative", "scale": y_scale, "axis": y_axis}
    rule = {"type": "rule", "opacity": 0.45, "strokeWidth": 1.5}
    colour = {"field": "arm", "type": "nominal", "sort": None, "legend": None}
    corner = {"value": 0}, {"value": "width"}
    return {
        **FILLS_WIDTH,
        "height": 340,
        "data": {"values": points},
        "layer": [
            {
                "mark": rule,
                "encoding": {"x": {**x, "field": "x_low"}, "x2": {"field": "x_high"}, "y": y,
                             "color": colour},
            },
            {
                "mark": rule,
                "encoding": {"x": x, "y": {**y, "field": "y_low"}, "y2": {"field": "y_high"},
                             "color": colour},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": colour,
                    "tooltip": [
                        {"field": "arm"},
                        {"field": "x", "title": "forgotten", "format": ".3~f"},
                        {"field": "y", "title": METRICS[learnt].label, "format": ".3~f"},
                    ],
                },
            },
            {
                "mark": {"type": "text", "align": "left", "dx": 8, "dy": -8, "fontSize": 11.5,
                         "color": INK},
                "encoding": {"x": x, "y": y, "text": {"field": "arm"}},
            },
            {
                "data": {"values": [{"corner": "better ↗"}]},
                "mark": {"type": "text", "align": "right", "dx": -6, "dy": 12, "fontSize": 12,
                         "fontWeight": 600, "color": {"expr": "good"}},
                "encoding": {"x": corner[1], "y": corner[0], "text": {"field": "corner"}},
            },
        ],
    }  # fmt: skip


def arms_by_metric(arms: Mapping[str, Mapping[str, Any]]) -> list[Spec]:
    """Draw each metric of each arm with its interval, an arm a line; right is better."""
    levels = next(iter(arms.values()))["levels"]
    shown = [
        name for kind in (LEARNING, GENERAL) for name, metric in METRICS.items()
        if metric.kind == kind and name in levels
    ]  # fmt: skip
    return [_panel(arms, name) for name in shown]


def _panel(arms: Mapping[str, Mapping[str, Any]], name: str) -> Spec:
    metric = METRICS[name]
    points = [
        {"arm": label, **_ends("x", arm["levels"][name], _bounds(name))}
        for label, arm in arms.items()
    ]
    way = "higher is better →" if metric.higher_is_better else "lower is better →"
    scale = {"zero": False, "reverse": not metric.higher_is_better, "padding": 10}
    x = {"field": "x", "type": "quantitative", "scale": scale,
         "axis": {"title": f"{metric.label} ({way})", "tickCount": 6}}  # fmt: skip
    y = {"field": "arm", "type": "nominal", "sort": None,
         "axis": {"title": None, "labelLimit": 160, "domain": False, "ticks": False}}  # fmt: skip
    return {
        **FILLS_WIDTH,
        "height": {"step": 20},
        "data": {"values": points},
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2, "color": MUTED, "opacity": 0.6},
                "encoding": {"x": {**x, "field": "x_low"}, "x2": {"field": "x_high"}, "y": y},
            },
            {
                "mark": {"type": "point", "filled": True, "size": 70, "color": KEPT, "opacity": 1},
                "encoding": {
                    "x": x,
                    "y": y,
                    "tooltip": [
                        {"field": "arm"},
                        {"field": "x", "title": metric.label, "format": f".{metric.digits}f"},
                        {"field": "x_low", "title": "from", "format": f".{metric.digits}f"},
                        {"field": "x_high", "title": "to", "format": f".{metric.digits}f"},
                    ],
                },
            },
        ],
    }


def _bounds(name: str) -> tuple[float, float]:
    return 0.0, _HIGHEST if METRICS[name].higher_is_better else float("inf")


def _ends(
    axis: str,
    estimate: Mapping[str, Any],
    bounds: tuple[float, float] = (float("-inf"), float("inf")),
) -> dict[str, float | None]:
    # Where there is no interval, no line is drawn; none leads to where no value can be.
    low, high = (
        None if end is None else min(max(end, bounds[0]), bounds[1])
        for end in (estimate["low"], estimate["high"])
    )
    return {axis: estimate["value"], f"{axis}_low": low, f"{axis}_high": high}
