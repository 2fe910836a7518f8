"""The further pass: losses of the response alone and of the whole text, into the run folder."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from gradsift.config import CaptureConfig
from gradsift.data.pool import Pool
from gradsift.evaluation.losses import reference_losses
from gradsift.stages.listener import SILENT, Listener
from gradsift.stages.rows import instances_of
from gradsift.store.reader import GradientStore
from gradsift.store.tables import (
    LOSS_NAMES,
    LOSSES_FOLDER,
    instances_with_losses,
    n_loss_parts,
    write_losses,
)
from gradsift.training.model import ModelSource, load_model, load_tokenizer, on_best_device

ROWS_IN_A_BATCH = 8
ROWS_IN_A_PART = 400


@dataclass(frozen=True)
class LossesResult:
    """What the further pass did.

    Attributes:
        run: The run folder.
        n_instances: Instances that have their losses now.
        n_computed: Those of them that this call computed.
    """

    run: str
    n_instances: int
    n_computed: int

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return vars(self)

    def text(self) -> str:
        """Return what a person wants to know."""
        return (
            f"{self.n_instances} instances have their losses in {self.run}/{LOSSES_FOLDER} "
            f"({self.n_computed} computed now)\n"
            f"next: gradsift select {shlex.quote(str(self.run))} --budget 50% --strategy ifd-loss"
        )


def compute_losses(
    store: GradientStore,
    pool: Pool,
    source: ModelSource,
    settings: CaptureConfig,
    listener: Listener = SILENT,
) -> LossesResult:
    """Compute the losses of every instance with the untrained model; what is there is skipped.

    Args:
        store: A complete gradient store.
        pool: Its rows.
        source: Its model.
        settings: Of its capture.
        listener: Is told what happens.

    Returns:
        What was done.

    Raises:
        ValueError: If rows or model are not those of the capture.
    """
    instances = instances_of(store, pool, source, load_tokenizer(source), settings)
    fingerprint = store.manifest.identity["model"]
    done = instances_with_losses(store.folder, fingerprint)
    to_do = [item for item in instances if item.instance_id not in done]
    # Rows of about the same length go together, as little is padded then.
    to_do.sort(key=lambda item: (len(item.input_ids), item.instance_id))
    n_tokens, all_tokens = 0, sum(len(item.input_ids) for item in to_do)
    model = on_best_device(load_model(source).eval()) if to_do else None
    for start in range(0, len(to_do), ROWS_IN_A_PART):
        part = to_do[start : start + ROWS_IN_A_PART]
        found = []
        for at in range(0, len(part), ROWS_IN_A_BATCH):
            batch = part[at : at + ROWS_IN_A_BATCH]
            assert model is not None
            found += reference_losses(model, batch)
            n_tokens += sum(len(item.input_ids) for item in batch)
            listener.progress(start + len(found), len(to_do), n_tokens, all_tokens)
        write_losses(
            store.folder,
            n_loss_parts(store.folder),
            fingerprint,
            [item.instance_id for item in part],
            {name: [getattr(row, name) for row in found] for name in LOSS_NAMES},
        )
    return LossesResult(str(store.folder), len(instances), len(to_do))
