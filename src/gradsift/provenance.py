"""What a run folder says of how it was made, and of each row of the pool it was made from."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict
from importlib.metadata import version

from gradsift.data.example import Plain, language_of
from gradsift.data.pool import Pool, PoolRow
from gradsift.store.tables import DROPPED, INSTANCE
from gradsift.version import __version__


def about_stack(packages: Iterable[str]) -> dict[str, object]:
    """Return machine and versions, for the manifest."""
    return {
        "gradsift": __version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "versions": {package: version(package) for package in packages},
    }


def about_pool(pool: Pool) -> dict[str, object]:
    """Return where the rows came from, for the manifest: `select` copies them from there."""
    return {
        "data": asdict(pool.source),
        "data_sha256": pool.sha256,
        "row_format": pool.row_format,
        "text_pairs": any(isinstance(row.example, Plain) for row in pool.rows),
        "columns": asdict(pool.columns),
    }


def instance_row(
    row: PoolRow, *, n_tokens: int, n_response_tokens: int | None, truncated: bool | None
) -> dict[str, object]:
    """Return the line of the pool table for a row that is an instance; None is not known."""
    assert row.example is not None
    return {
        **_place(row),
        "source": row.source,
        "language": language_of(row.example),
        "status": INSTANCE,
        "reason": None,
        "detail": None,
        "n_tokens": n_tokens,
        "n_response_tokens": n_response_tokens,
        "truncated": truncated,
    }


def dropped_row(row: PoolRow, reason: str, detail: str) -> dict[str, object]:
    """Return the line of the pool table for a row that is none; `reason` is in DROP_REASONS."""
    unknown = dict.fromkeys(("n_tokens", "n_response_tokens", "truncated", "source", "language"))
    return {**_place(row), "status": DROPPED, "reason": reason, "detail": detail, **unknown}


def _place(row: PoolRow) -> dict[str, object]:
    names = ("row", "line", "instance_id", "start", "end", "content_hash")
    return {name: getattr(row, name) for name in names}
