"""SelectionConfig, or a run folder that holds them → its rows, its model, its store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gradsift.config import CONFIG_NAME, CaptureConfig, RunConfig, resolve
from gradsift.data.chat_templates import require_template
from gradsift.data.pool import Pool, load_pool
from gradsift.errors import GradsiftError
from gradsift.stages.listener import Listener
from gradsift.store.reader import GradientStore, read_store

if TYPE_CHECKING:
    from gradsift.training.model import ModelSource


def open_run(run: str | Path | GradientStore) -> tuple[GradientStore, RunConfig]:
    """Open a run folder for a further pass over its rows.

    Args:
        run: A run folder that `capture` made, or its store.

    Returns:
        Its store, and how its rows and its model are loaded.

    Raises:
        ValueError: If it is no such folder.
    """
    store = run if isinstance(run, GradientStore) else read_store(Path(run).resolve())
    path = store.folder / CONFIG_NAME
    if not path.exists():
        raise GradsiftError(
            f"{store.folder}: there is no {CONFIG_NAME} that says how its rows and its model are "
            "loaded; only runs of gradsift capture can be passed over again."
        )
    return store, resolve({}, path)


def load_rows(config: RunConfig, data: str | None = None, split: str | None = None) -> Pool:
    """Load the rows of a run, or others that are written like them.

    Args:
        config: Of the run.
        data: Other rows, perhaps without ids and sources; None for the run's own.
        split: Of the other rows, if they come in several.

    Returns:
        The rows.

    Raises:
        ValueError: If they cannot be read.
    """
    is_name = config.dataset_info is not None and (data is None or not Path(data).exists())
    return load_pool(
        config.data if data is None else data,
        row_format=config.format,
        id_column=config.id_column,
        prompt_column=config.prompt_column,
        response_column=config.response_column,
        system_column=config.system_column,
        source_column=config.source_column,
        dataset_info=config.dataset_info if is_name else None,
        split=config.split if data is None else split,
        train_on=config.train_on,
        labels_needed=data is None,
    )


def model_and_settings(config: RunConfig, listener: Listener) -> tuple[ModelSource, CaptureConfig]:
    """Find the model of a run, and the settings of its capture.

    Args:
        config: Of the run.
        listener: Is told when the demo model is converted.

    Returns:
        What is loaded and how.

    Raises:
        ValueError: If the model's chat template is not the one that is required.
    """
    # Heavy, and only needed here.
    from gradsift.training.model import find_model, load_tokenizer

    source = find_model(
        config.model,
        config.revision,
        config.dtype,
        config.trust_remote_code,
        config.load_in,
        tell=listener.note,
    )
    if config.chat_template is not None:
        require_template(load_tokenizer(source), config.chat_template)
    return source, CaptureConfig(
        config.max_length,
        config.truncation,
        config.sft,
        config.lora_settings(),
        config.seed,
        config.sketch_size,
        config.resolved_signal(),
        config.resolved_when(),
        config.warmup_fraction,
        config.recording,
        config.save_steps,
        config.batching,
    )
