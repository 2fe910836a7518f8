"""Charts of a selection as Vega-Lite specifications, plain dictionaries with their data inside.

Colours are parameters of the specification, named as in COLOURS, so that a page may set them for
light and dark; `standalone` sets those of a light page.

Shapes: N rows, R rows that are drawn as points, B bins, K selections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
# On white; the page has others for dark.
COLOURS = {
    "kept": "#1d6fd8",
    "rest": "#c3cad6",
    "ink": "#1b2430",
    "muted": "#5b6675",
    "good": "#12805c",
    "faint": "#edf1f7",
    "paper": "#ffffff",
}
N_BINS = 30
# Beyond this quantile, values are counted in the last bin.
_TAIL = 0.99
HEIGHT = 230
# Where nothing else says it.
WIDTH = 440
# What a sign of a bar's label takes, of the bars' width.
_ROOM_OF_A_SIGN = 0.033
# Names beside bars, in pixels.
_LABELS = 220
KEPT = {"expr": "kept"}
REST = {"expr": "rest"}
INK = {"expr": "ink"}
MUTED = {"expr": "muted"}
PAPER = {"expr": "paper"}
_IS_KEPT = {"test": "datum.kept"}
# Behind words that stand on something else.
_HALO = {"stroke": PAPER, "strokeWidth": 4, "color": PAPER}

# Of what the page leaves to a chart; the height is what the chart says.
FILLS_WIDTH = {"width": "container", "autosize": {"type": "fit-x", "contains": "padding"}}
Spec = dict[str, Any]
Middle = Literal["mean", "median"]


@dataclass(frozen=True)
class Chart:
    """A chart with the words around it.

    Attributes:
        key: Its name in files.
        title: What it says, in one sentence.
        note: How to read it.
        specs: In Vega-Lite, one below the other.
        wide: Whether it takes the width of two.
    """

    key: str
    title: str
    note: str
    specs: tuple[Spec, ...]
    wide: bool = False


def standalone(spec: Spec, colours: Mapping[str, str] = COLOURS) -> Spec:
    """Return a specification that can be drawn by itself, in the colours of a light page."""
    return {"$schema": SCHEMA, **_coloured(spec, colours), "width": WIDTH}


def one_below_the_other(specs: Sequence[Spec]) -> Spec:
    """Return specifications as one that can be drawn by itself."""
    # Of what only a chart has that is not one of several.
    alone = ("$schema", "autosize")
    parts = [{k: v for k, v in standalone(spec).items() if k not in alone} for spec in specs]
    return {"$schema": SCHEMA, "vconcat": parts}


def _coloured(part: Any, colours: Mapping[str, str]) -> Any:
    if isinstance(part, dict):
        if part.keys() == {"expr"}:
            return colours[part["expr"]]
        return {key: _coloured(value, colours) for key, value in part.items()}
    return [_coloured(one, colours) for one in part] if isinstance(part, list) else part


def histogram(
    value_N: np.ndarray,
    kept_N: np.ndarray,
    axis: str,
    digits: int,
    *,
    middle: Middle = "mean",
    clipped: bool = False,
) -> Spec:
    """Count rows by a value: all of them, and those that are kept in front.

    Args:
        value_N: NaN where a row has none.
        kept_N: Which rows are kept.
        axis: The value's name.
        digits: Decimals shown.
        middle: What the two lines stand at.
        clipped: Whether the last bin takes the rows beyond the pool's 99th percentile.
    """
    there_N = np.isfinite(value_N)
    value_N, kept_N = value_N[there_N], kept_N[there_N]
    low, high = value_N.min(), value_N.max()
    if clipped:
        high = min(high, np.quantile(value_N, _TAIL))
    edges = _edges(float(low), float(high), digits)
    inside_N = np.clip(value_N, edges[0], edges[-1])
    pool_B, kept_B = (np.histogram(x, edges)[0].tolist() for x in (inside_N, inside_N[kept_N]))
    beyond = clipped and bool((value_N > edges[-1]).any())
    bins = [
        {
            "from": edges[at],
            "to": edges[at + 1],
            "pool": pool,
            "kept": kept,
            "range": f"{edges[at]:,.{digits}f} to {edges[at + 1]:,.{digits}f}"
            + " or more" * (beyond and at == len(pool_B) - 1),
        }
        for at, (pool, kept) in enumerate(zip(pool_B, kept_B, strict=True))
    ]
    at_middle = np.mean if middle == "mean" else np.median
    lines = [
        {"at": float(at_middle(value_S)), "kept": kept, "of": f"{middle} of {whose} rows"}
        for value_S, kept, whose in ((value_N, False, "all"), (value_N[kept_N], True, "kept"))
        if len(value_S)
    ]
    tooltip = [
        {"field": "range", "title": axis},
        {"field": "pool", "title": "rows"},
        {"field": "kept", "title": "of them kept"},
    ]
    x = {
        "field": "from",
        "type": "quantitative",
        "bin": "binned",
        "axis": {
            "title": axis,
            "format": f",.{digits}~f",
            "tickCount": 6,
            "tickMinStep": 10.0**-digits,
        },
        "scale": {"nice": False, "zero": False},
    }
    bars = {"x": x, "x2": {"field": "to"}, "tooltip": tooltip}
    return {
        **FILLS_WIDTH,
        "height": HEIGHT,
        "data": {"values": bins},
        "layer": [
            _bars(REST, bars, "pool"),
            _bars(KEPT, bars, "kept"),
            {
                "data": {"values": lines},
                "mark": {"type": "rule", "strokeDash": [5, 3], "strokeWidth": 1.5},
                "encoding": {
                    "x": {"field": "at", "type": "quantitative"},
                    "color": {"condition": {**_IS_KEPT, "value": KEPT}, "value": MUTED},
                    "tooltip": [
                        {"field": "of", "title": "line"},
                        {"field": "at", "format": f",.{digits + 1}f", "title": axis},
                    ],
                },
            },
        ],
    }


def _bars(colour: object, encoding: Mapping[str, Any], field: str) -> Spec:
    y = {"field": field, "type": "quantitative", "axis": {"title": "rows", "tickMinStep": 1}}
    mark = {"type": "bar", "color": colour, "binSpacing": 1}
    return {"mark": mark, "encoding": {**encoding, "y": y}}


def _edges(low: float, high: float, digits: int) -> list[float]:
    # Of whole numbers, no bin is narrower than one.
    n_bins = N_BINS if digits else int(np.clip(np.ceil(high - low), 1, N_BINS))
    if high <= low:
        high = low + 10.0**-digits
    return np.linspace(low, high, n_bins + 1).tolist()


def _as_key(name: str) -> str:
    """Return a name as Vega may look it up in an object, which has this one of its own."""
    return f"{name} " if name == "__proto__" else name


def scatter(points: Sequence[Mapping[str, Any]], x_axis: str, y_axis: str) -> Spec:
    """Draw rows as points: `points` have `x`, `y`, `kept`, `id`, `text`; kept ones in front."""
    return {
        **FILLS_WIDTH,
        "height": HEIGHT + 60,
        "data": {"values": _kept_last(points)},
        "mark": _point_mark(),
        "encoding": {
            "x": _axis("x", x_axis),
            "y": _axis("y", y_axis),
            **_point_looks(),
            "tooltip": [
                {"field": "id", "title": "row"},
                {"field": "text", "title": "prompt"},
                {"field": "x", "title": x_axis, "format": ".3~f"},
                {"field": "y", "title": y_axis, "format": ".3~f"},
            ],
        },
    }


def plane(points: Sequence[Mapping[str, Any]], names: Sequence[Mapping[str, Any]]) -> Spec:
    """Draw rows on a plane without axes, some groups of them named where they lie.

    `points` have `x`, `y`, `kept`, `id`, `text`, `group`; `names` have `x`, `y`, `name`.
    """
    nothing = {"axis": None, "scale": {"zero": False, "nice": False, "padding": 12}}
    x, y = ({"field": name, "type": "quantitative", **nothing} for name in "xy")
    label = {"type": "text", "fontSize": 11.5, "fontWeight": 600}
    return {
        **FILLS_WIDTH,
        "height": HEIGHT + 150,
        "data": {"values": _kept_last(points)},
        "layer": [
            {
                "mark": _point_mark(),
                "encoding": {
                    "x": x,
                    "y": y,
                    **_point_looks(),
                    "tooltip": [
                        {"field": "id", "title": "row"},
                        {"field": "group", "title": "about"},
                        {"field": "text", "title": "prompt"},
                    ],
                },
            },
            *(
                {
                    "data": {"values": list(names)},
                    "mark": {**label, **look},
                    "encoding": {"x": x, "y": y, "text": {"field": "name", "type": "nominal"}},
                }
                for look in (_HALO, {"color": INK})
            ),
        ],
    }


def _kept_last(points: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(points, key=lambda point: point["kept"])


def _point_mark() -> Spec:
    return {"type": "point", "filled": True, "cursor": "pointer", "strokeWidth": 0}


def _point_looks() -> Spec:
    return {
        "color": {"condition": {**_IS_KEPT, "value": KEPT}, "value": REST},
        "opacity": {"condition": {**_IS_KEPT, "value": 0.95}, "value": 0.75},
        "size": {"condition": {**_IS_KEPT, "value": 42}, "value": 22},
    }


def _axis(field: str, title: str) -> Spec:
    scale = {"zero": False, "nice": True}
    axis = {"title": title, "tickCount": 7}
    return {"field": field, "type": "quantitative", "axis": axis, "scale": scale}


def kept_by_group(groups: Sequence[Mapping[str, Any]], share: float, what: str) -> Spec:
    """Draw which part of each group is kept, beside a line at that of all rows.

    Args:
        groups: With `name`, `pool` and `kept` rows, in the order shown.
        share: Of all rows, kept; 0 to 1.
        what: What a group is called.
    """
    bars = [
        {
            **group,
            "name": _as_key(group["name"]),
            "share": group["kept"] / group["pool"],
            "of": f"{group['kept']:,} of {group['pool']:,}",
        }
        for group in groups
    ]
    largest = max(max((bar["share"] for bar in bars), default=0), share)
    # Beside the longest bar its label has to stand.
    room = 1 + _ROOM_OF_A_SIGN * max((len(bar["of"]) for bar in bars), default=0)
    x = {
        "field": "share",
        "type": "quantitative",
        "scale": {"domain": [0, room * largest], "nice": False},
        "axis": {"title": "share of its rows that is kept", "format": "~%", "tickCount": 5},
    }
    tooltip = [
        {"field": "name", "title": what},
        {"field": "of", "title": "kept"},
        {"field": "share", "title": "share", "format": ".1%"},
    ]
    line = {
        "data": {"values": [{"share": share, "of": "all rows"}]},
        "mark": {"type": "rule", "strokeDash": [5, 3], "strokeWidth": 1.5, "color": MUTED},
        "encoding": {
            "x": x,
            "tooltip": [
                {"field": "of", "title": "line"},
                {"field": "share", "title": "kept", "format": ".1%"},
            ],
        },
    }
    return _named_bars(bars, x, tooltip, KEPT, "of", [line])


def counted(kinds: Sequence[tuple[str, int]], colour: object) -> Spec:
    """Draw how many rows there are of each kind, in the order given."""
    bars = [{"name": _as_key(name), "n": n, "text": f"{n:,}"} for name, n in kinds]
    x = {
        "field": "n",
        "type": "quantitative",
        "scale": {"domain": [0, 1.35 * max(n for _, n in kinds)], "nice": False},
        "axis": None,
    }
    tooltip = [{"field": "name", "title": "why"}, {"field": "text", "title": "rows"}]
    return _named_bars(bars, x, tooltip, colour, "text", [], extent=_LABELS)


def _named_bars(
    bars: Sequence[Mapping[str, Any]],
    x: Spec,
    tooltip: list[Spec],
    colour: object,
    text: str,
    behind: list[Spec],
    extent: int = 0,
) -> Spec:
    axis = {"title": None, "labelLimit": _LABELS, "domain": False, "ticks": False}
    y = {"field": "name", "type": "nominal", "sort": None, "axis": {**axis, "minExtent": extent}}
    label = {"type": "text", "align": "left", "dx": 6, "fontSize": 11}
    text_at = {"x": x, "y": y, "text": {"field": text, "type": "nominal"}}
    return {
        **FILLS_WIDTH,
        "height": {"step": 22},
        "data": {"values": list(bars)},
        "layer": [
            *behind,
            {
                "mark": {"type": "bar", "color": colour, "height": 13, "cornerRadiusEnd": 2},
                "encoding": {"x": x, "y": y, "tooltip": tooltip},
            },
            {"mark": {**label, **_HALO}, "encoding": text_at},
            {"mark": {**label, "color": INK}, "encoding": text_at},
        ],
    }


def heatmap(names: Sequence[str], overlap_KK: np.ndarray) -> Spec:
    """Draw how many rows each two selections share: of those in either, 0 to 1."""
    cells = [
        {"a": _as_key(a), "b": _as_key(b), "share": float(overlap_KK[i, j])}
        for i, a in enumerate(names)
        for j, b in enumerate(names)
    ]
    axis = {"title": None, "labelLimit": 150, "domain": False, "ticks": False}
    x = {"field": "a", "type": "nominal", "sort": None, "axis": {**axis, "labelAngle": -30}}
    y = {"field": "b", "type": "nominal", "sort": None, "axis": axis}
    return {
        **FILLS_WIDTH,
        "height": {"step": 34},
        "data": {"values": cells},
        "layer": [
            {
                "mark": {"type": "rect", "cornerRadius": 2},
                "encoding": {
                    "x": x,
                    "y": y,
                    "color": {
                        "field": "share",
                        "type": "quantitative",
                        "scale": {"domain": [0, 1], "range": [{"expr": "faint"}, KEPT]},
                        "legend": None,
                    },
                    "tooltip": [
                        {"field": "a", "title": "one"},
                        {"field": "b", "title": "other"},
                        {
                            "field": "share",
                            "title": "rows in both, of those in either",
                            "format": ".1%",
                        },
                    ],
                },
            },
            {
                "mark": {"type": "text", "fontSize": 12},
                "encoding": {
                    "x": x,
                    "y": y,
                    "text": {"field": "share", "type": "quantitative", "format": ".0%"},
                    "color": {
                        "condition": {"test": "datum.share > 0.5", "value": PAPER},
                        "value": INK,
                    },
                },
            },
        ],
    }


def gain_curve(gain_S: np.ndarray, n_kept: int, most_points: int = 400) -> Spec:
    """Draw the gain of each row that was tried, and where the budget "auto" ends."""
    at_P = np.unique(np.linspace(0, len(gain_S) - 1, min(most_points, len(gain_S))).astype(int))
    points = [{"rank": at + 1, "gain": float(gain_S[at])} for at in at_P.tolist()]
    return {
        **FILLS_WIDTH,
        "height": HEIGHT,
        "data": {"values": points},
        "layer": [
            {
                "mark": {"type": "area", "color": KEPT, "opacity": 0.18, "line": {"color": KEPT}},
                "encoding": {
                    "x": _axis("rank", "rows taken, the most useful first"),
                    "y": {
                        "field": "gain",
                        "type": "quantitative",
                        "axis": {"title": "what one more row adds"},
                    },
                    "tooltip": [
                        {"field": "rank", "title": "row"},
                        {"field": "gain", "title": "adds", "format": ".3~g"},
                    ],
                },
            },
            {
                "data": {"values": [{"rank": n_kept, "of": "the budget ends here"}]},
                "mark": {"type": "rule", "strokeDash": [5, 3], "strokeWidth": 1.5, "color": INK},
                "encoding": {
                    "x": {"field": "rank", "type": "quantitative"},
                    "tooltip": [{"field": "of", "title": "line"}, {"field": "rank"}],
                },
            },
        ],
    }
