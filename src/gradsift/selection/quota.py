"""Limits for sources: `--quota SOURCE=500` or `SOURCE=25%`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np


def quotas(
    source: Sequence[str] | None, quota: Mapping[str, str | int]
) -> tuple[np.ndarray | None, dict[int, int] | None]:
    """Turn limits for sources into groups of rows and the most rows of each.

    Args:
        source: Where each row comes from; None where the pool does not say.
        quota: Source → rows, or a percentage of its rows; "*" for every source not named.

    Returns:
        group_N and most_G as in `Terms`; None and None without a quota.

    Raises:
        ValueError: If no source is known, one that is named is not there, or an amount is none.
    """
    if not quota:
        return None, None
    if source is None:
        raise ValueError(
            "quotas are for sources, but no row says where it comes from: capture again with "
            "--source-column."
        )
    names, group_N = np.unique(np.asarray(source, dtype=object).astype(str), return_inverse=True)
    unknown = [name for name in quota if name != "*" and name not in names]
    if unknown:
        raise ValueError(
            f"quota for source {unknown[0]!r}: there is none of that name; there are "
            f"{', '.join(map(repr, names[:20].tolist()))}."
        )
    counts, most = np.bincount(group_N), {}
    for group, name in enumerate(names):
        amount = quota.get(str(name), quota.get("*"))
        if amount is not None:
            most[group] = _quota_rows(str(name), amount, int(counts[group]))
    return group_N, most


def _quota_rows(name: str, amount: str | int, n_rows: int) -> int:
    text = str(amount).strip()
    number = text.removesuffix("%")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if value < 0 or (text.endswith("%") and value > 100):
        raise ValueError(
            f"quota {name}={amount}: expected a number of rows, as in {name}=500, or a percentage "
            "of the source's rows, as in 25%."
        )
    return round(value * n_rows / 100) if text.endswith("%") else int(value)
