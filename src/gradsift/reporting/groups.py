"""What the groups of content of a selection are called."""

from __future__ import annotations

import numpy as np

from gradsift.reporting.rows import Rows
from gradsift.reporting.sampling import stratified
from gradsift.reporting.words import telling_words

# Rows whose texts name the groups, and how much of each text.
_READ_ROWS = 4_000
_READ_CHARACTERS = 1_500


def names_of_groups(rows: Rows) -> dict[int, str]:
    """Name each group of content by its telling words; by its number where it has none."""
    cluster_N = rows.numbers("cluster")
    there_R = np.flatnonzero(np.isfinite(cluster_N))
    groups = np.unique(cluster_N[there_R]).astype(int).tolist()
    read_R = there_R[stratified(cluster_N[there_R], _READ_ROWS)]
    table = rows.table.select(["prompt", "response"]).take(read_R)
    texts = [
        " ".join((one or "")[:_READ_CHARACTERS] for one in pair)
        for pair in zip(*(table[name].to_pylist() for name in table.column_names), strict=True)
    ]
    words = telling_words(texts, cluster_N[read_R].astype(int)) if groups else {}
    names = {group: " · ".join(words.get(group, ())) or f"group {group}" for group in groups}
    # Two groups of one name would be one in a chart.
    seen: dict[str, int] = {}
    for group, name in names.items():
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            names[group] = f"{name} ({seen[name]})"
    return names
