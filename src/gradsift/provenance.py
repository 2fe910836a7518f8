"""What a run folder says of how it was made, and of each row of the pool it was made from."""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from gradsift.captured_rows import what_is_signed
from gradsift.config import CaptureConfig
from gradsift.data.example import Plain
from gradsift.data.language import language_of
from gradsift.data.pool import Pool, PoolRow
from gradsift.data.texts import lines_of_texts
from gradsift.data.tokenization import Instances
from gradsift.seals import short_sha256
from gradsift.signatures import key_file, sign
from gradsift.store.manifest import Manifest
from gradsift.store.tables import (
    DROPPED,
    INSTANCE,
    digest_of_pool,
    pool_table,
    texts_table,
    write_pool_table,
    write_texts,
)
from gradsift.training.model import ModelSource, model_fingerprint, tokenizer_fingerprint
from gradsift.version import __version__

logger = logging.getLogger(__name__)


def about_stack(packages: Iterable[str]) -> dict[str, object]:
    """Return machine and versions, for the manifest."""
    return {
        "gradsift": __version__,
        "python": platform.python_version(),
        "machine": platform.platform(),
        "versions": {package: version(package) for package in packages},
    }


def about_pool(pool: Pool, folder: Path) -> dict[str, object]:
    """Return where the rows came from, for the manifest: `select` copies them from there.

    Rows from memory are in the run folder, once `save_pool` put them there.
    """
    source = pool.source if pool.held is None else pool.held.source(folder.resolve())
    return {
        # As the manifest will say it.
        "data": json.loads(json.dumps(asdict(source))),
        "data_sha256": pool.sha256,
        "row_format": pool.row_format,
        "text_pairs": any(isinstance(row.example, Plain) for row in pool.rows),
        "columns": asdict(pool.columns),
    }


def signed(manifest: Manifest, rows: Sequence[dict[str, object]]) -> Manifest:
    """Return a manifest with the signature that it was this user who named its rows.

    `rows` are those that `save_pool` is given: what is copied of the named files.
    """
    about = {**manifest.about, "pool_sha256": digest_of_pool(pool_table(rows))}
    signature = None
    try:
        signature = sign(what_is_signed(manifest.identity, about))
    except OSError as error:
        logger.warning(
            f"{key_file()}: the key that tells your runs from those of others cannot be used or "
            f"made ({error.strerror or error}): later commands will ask for `data`"
        )
    return replace(manifest, about={**about, "signed": signature})


def with_rows_named(
    manifest: Manifest, pool: Pool, folder: Path, rows: Sequence[dict[str, object]]
) -> Manifest:
    """Return a manifest whose rows are where the user named them now, and are signed.

    It stays as it is if these are other rows than those that it accounts for.
    """
    if manifest.about.get("data_sha256") != pool.sha256:
        return manifest
    named = replace(manifest, about={**manifest.about, **about_pool(pool, folder)})
    return signed(named, rows)


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
    names = ("row", "line", "file", "index_in_file", "instance_id", "start", "end", "content_hash")
    return {name: getattr(row, name) for name in names}


def save_pool(folder: Path, pool: Pool, rows: Sequence[dict[str, object]]) -> None:
    """Write what became of each row, what it says, and the rows themselves if from memory."""
    if pool.held is not None:
        pool.held.save(folder)
    write_pool_table(folder, rows)
    table = pool_table(rows)
    texts = lines_of_texts(pool.rows, table["language"].to_pylist())
    write_texts(folder, digest_of_pool(table), texts_table(texts))


def pool_rows(pool: Pool, instances: Instances) -> list[dict[str, object]]:
    """Return the pool table: a line for each row, of what became of it."""
    by_id = {instance.instance_id: instance for instance in instances.items}
    rows = []
    for row in pool.rows:
        instance = by_id.get(row.instance_id) if row.example is not None else None
        if instance is None:
            reason, detail = instances.dropped.get(row.instance_id, (row.reason, row.detail))
            rows.append(dropped_row(row, reason, detail))
        else:
            rows.append(
                instance_row(
                    row,
                    n_tokens=len(instance.input_ids),
                    n_response_tokens=instance.n_response_tokens,
                    truncated=instance.truncated,
                )
            )
    return rows


def identity_of(
    source: ModelSource,
    model_config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    pool: Pool,
    instances: Instances,
    config: CaptureConfig,
) -> dict[str, object]:
    """Return what must be equal for records to belong together, for the manifest."""
    rows = ([item.instance_id, item.input_ids, item.labels] for item in instances.items)
    return {
        "model": model_fingerprint(source, model_config),
        "dtype": source.dtype,
        # Stores from before there was this setting stay what they are.
        **({} if source.load_in is None else {"load_in": source.load_in}),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "data": f"sha256 {pool.sha256[:16]}",
        "instances": f"sha256 {short_sha256(map(json.dumps, rows))}",
        **json.loads(json.dumps(config.identity, sort_keys=True, default=str)),
    }
