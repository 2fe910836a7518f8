"""What rules taught beside random rows of the same budget, as one picture.

Usage:
    python experiments/picture.py docs/images/beside-random.svg
"""

import argparse
from pathlib import Path

import altair as alt
from tables import RANDOM, RESULTS, Table, budget_of, draws, read_cells

from gradsift.evaluation.intervals import estimate_difference

# Folder of results, test, whether arms are of one target.
SHOWN = {
    "dirty medicine": ("dirty", "medicine", "test"),
    "dirty finance": ("dirty", "finance", "test"),
    "dirty law": ("dirty", "law", "test"),
    "mix, for medicine": ("mixed", "mixed", "medicine"),
    "mix, for law": ("mixed", "mixed", "law"),
    "mix, for finance": ("mixed", "mixed", "finance"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("picture", type=Path)
    points = [point for name, where in SHOWN.items() for point in points_of(name, *where)]
    draw(points).save(parser.parse_args().picture)


def points_of(pool, folder, name, test):
    """Yield each arm's difference from random rows, where both are trained often enough to tell."""
    table = Table(read_cells(RESULTS / folder).get(name, {}), test, [])
    for arm in table.names():
        other = f"{RANDOM} {budget_of(arm)}"
        if arm == other or budget_of(arm) is None or other not in table.arms:
            continue
        if None in (table.spread(arm, test), table.spread(other, test)):
            continue
        found = estimate_difference(table.measured(arm, test), table.measured(other, test))
        rule, _, budget = arm.rpartition(" ")
        yield {
            "pool": f"{pool}, {budget}",
            "rule": rule.partition(",")[0],
            "drawn": "draws rows" if draws(arm) else "chooses rows",
            "difference": found.value,
            "low": found.low,
            "high": found.high,
        }


def draw(points):
    values = alt.Data(values=points)
    order = list(dict.fromkeys(point["pool"] for point in points))
    y = alt.Y("rule:N", title=None)
    base = alt.Chart(values)
    zero = base.mark_rule(color="#888").encode(x=alt.datum(0))
    line = base.mark_rule(strokeWidth=2).encode(
        x=alt.X("low:Q", title="held-out loss less that of random rows (below 0: better)"),
        x2="high:Q",
        y=y,
    )
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(
        x="difference:Q", y=y, color=alt.Color("drawn:N", title=None)
    )
    chart = (zero + line + dot).properties(width=420)
    return chart.facet(row=alt.Row("pool:N", title=None, sort=order)).resolve_scale(y="independent")


if __name__ == "__main__":
    main()
