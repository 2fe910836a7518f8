"""Pool → instances, as a capture tokenizes them; and, after it, the very ones that it captured."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from gradsift.config import CaptureConfig
from gradsift.data.pool import Pool
from gradsift.data.tokenization import Instance, Instances, build_instances
from gradsift.errors import GradsiftError
from gradsift.store.reader import GradientStore
from gradsift.store.tables import read_pool_table
from gradsift.training.model import ModelSource, load_config, model_fingerprint


def tokenized(
    pool: Pool,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
    settings: CaptureConfig,
) -> Instances:
    """Tokenize a pool as a capture does.

    Args:
        pool: The rows.
        tokenizer: Of the model.
        config: Of the model.
        settings: Of the capture.

    Returns:
        The instances, and what became of the other rows.

    Raises:
        ValueError: If the tokenizer does not belong to the model.
    """
    return build_instances(
        [(row.instance_id, row.example) for row in pool.rows if row.example is not None],
        tokenizer,
        max_length=settings.max_length,
        truncation=settings.truncation,
        vocab_size=config.get_text_config().vocab_size,
    )


def instances_of(
    store: GradientStore,
    pool: Pool,
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    settings: CaptureConfig,
) -> Sequence[Instance]:
    """Tokenize a pool again, and require that it is what was captured.

    Args:
        store: A complete gradient store.
        pool: Its rows.
        source: Its model.
        tokenizer: Of the model.
        settings: Of its capture.

    Returns:
        The instances, in the pool's order.

    Raises:
        ValueError: If rows or model are not those of the capture.
    """
    config = load_config(source)
    fingerprint = model_fingerprint(source, config)
    expected = store.manifest.identity["model"]
    if fingerprint != expected:
        raise GradsiftError(
            f"{store.folder}: was captured with model {expected}, {source.name} is {fingerprint}. "
            "Put the old one back, or capture again."
        )
    dtype = store.manifest.identity["dtype"]
    if source.dtype != dtype:
        raise GradsiftError(
            f"{store.folder}: was captured in {dtype}, its config.yaml now says {source.dtype}. "
            "Put the old dtype back, or capture again."
        )
    load_in = store.manifest.identity.get("load_in")
    if source.load_in != load_in:
        raise GradsiftError(
            f"{store.folder}: was captured with load_in {load_in}, its config.yaml now says "
            f"{source.load_in}. Put the old one back, or capture again."
        )
    instances = tokenized(pool, tokenizer, config, settings).items
    table = read_pool_table(store.folder).select(["instance_id", "content_hash"])
    captured = dict(zip(*table.to_pydict().values(), strict=True))
    # Ids of the user's own do not change with the text.
    same = all(row.content_hash == captured.get(row.instance_id) for row in pool.rows)
    if not same or {item.instance_id for item in instances} != set(store.instance_ids):
        raise GradsiftError(
            f"{pool.source.name}: its rows are not those that {store.folder} was captured from. "
            "Put the old file back, or capture again."
        )
    return instances
