"""Reference losses of every row: response, response alone, whole text; by the untrained model."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsift.config import RowsConfig, TrustConfig
from gradsift.console import shows_progress
from gradsift.evaluation.losses import instance_losses
from gradsift.evaluation.mismatches import mismatched_instances
from gradsift.files import remove_leftovers
from gradsift.progress import Progress, stage, tell_kept
from gradsift.run_folder import Run
from gradsift.schema import split_settings, takes
from gradsift.store.reader import GradientStore
from gradsift.store.tables import (
    LOSS_NAMES,
    LOSSES_FOLDER,
    instances_with_losses,
    write_losses,
)
from gradsift.training.batches import n_tokens_of
from gradsift.training.model import load_model, on_best_device, without_progress_bars
from gradsift.wording import joined

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS_IN_A_BATCH = 8
ROWS_IN_A_PART = 400
# A share of them is known to 0.01 then.
MOST_PAIRED_AGAIN = 2000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceLossesResult:
    """What was computed.

    Attributes:
        run: The run folder.
        n_instances: Instances that have their reference losses now.
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
        return joined(
            [
                f"{self.n_instances} instances have reference losses in {self.run}/{LOSSES_FOLDER} "
                f"({self.n_computed} computed now)",
                f"next: gradsift audit {shlex.quote(str(self.run))}",
            ]
        )


@takes(RowsConfig, TrustConfig)
@shows_progress
def reference_losses(
    run: str | Path | GradientStore | Run,
    *,
    progress: Progress | bool = True,
    **settings: Any,
) -> ReferenceLossesResult:
    """Compute what `audit`, the gate, perplexity-middle, ifd and the score prompt-gain need.

    Four forward passes over every row with the untrained model: the row, its response alone, its
    response after the prompt of another row, and after that of yet another one, this for 2,000 rows
    at most. Called again it resumes.

    Args:
        run: A run folder that `capture` made.
        progress: True shows a bar (lines where stderr is no terminal), False nothing; a function is
            called with rows done, rows in all, tokens done, tokens in all.
        **settings: Of a run that was captured elsewhere; see Settings.

    Returns:
        What was computed.

    Raises:
        GradsiftError: If it is no such folder, or rows or model changed since.
    """
    rows, trust = split_settings(settings, RowsConfig, TrustConfig)
    run = Run.of(run, data=rows.data, trust_remote_code=trust.trust_remote_code)
    run.introduce()
    with without_progress_bars():
        n_computed = _compute(run, progress)
    return ReferenceLossesResult(str(run.folder), len(run.instances), n_computed)


def _compute(run: Run, progress: Progress) -> int:
    remove_leftovers(run.folder)
    done = instances_with_losses(run.folder, run.losses_made_from)
    to_do = [item for item in run.instances if item.instance_id not in done]
    # Rows of about the same length go together, as little is padded then.
    to_do.sort(key=lambda item: (len(item.input_ids), item.instance_id))
    all_rows, all_tokens = len(run.instances), n_tokens_of(run.instances)
    n_done, n_tokens = all_rows - len(to_do), all_tokens - n_tokens_of(to_do)
    progress = stage(progress, "evaluated")
    if to_do:
        if n_done:
            logger.info(f"resumes: {n_done} of {all_rows} rows have reference losses")
        progress(n_done, all_rows, n_tokens, all_tokens)
        first = _before_any_text(run.tokenizer)
        # Of all rows: which pairs there are does not depend on what was done before a kill.
        length = run.config.max_length
        pairs = mismatched_instances(run.instances, length, seed=0)
        again = mismatched_instances(
            run.instances, length, seed=1, most=MOST_PAIRED_AGAIN, unlike=pairs
        )
        others = {i.instance_id: both for i, *both in zip(run.instances, pairs, again, strict=True)}
    model = on_best_device(load_model(run.model).eval()) if to_do else None
    for start in range(0, len(to_do), ROWS_IN_A_PART):
        part, losses = to_do[start : start + ROWS_IN_A_PART], []
        for at in range(0, len(part), ROWS_IN_A_BATCH):
            batch = part[at : at + ROWS_IN_A_BATCH]
            assert model is not None
            losses += instance_losses(
                model, batch, [*zip(*(others[i.instance_id] for i in batch), strict=True)], first
            )
            n_tokens += n_tokens_of(batch)
            progress(n_done + start + len(losses), all_rows, n_tokens, all_tokens)
        write_losses(
            run.folder,
            run.losses_made_from,
            [item.instance_id for item in part],
            {name: [getattr(row, name) for row in losses] for name in LOSS_NAMES},
        )
        tell_kept(progress)
    return len(to_do)


def _before_any_text(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token that a tokenizer begins every text with, if it does."""
    ids = tokenizer("").input_ids
    return ids[:1] if ids[:1] == [tokenizer.bos_token_id] else []
