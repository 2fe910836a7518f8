"""The rows of a selection in trainers' own forms, with rows of replay behind them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from gradsift.config import ReplayConfig
from gradsift.data.exports.rows import ExportRow, Setup
from gradsift.data.exports.write import write_export
from gradsift.errors import GradsiftError
from gradsift.files import remove
from gradsift.progress import Progress
from gradsift.replay.rows import Replayed
from gradsift.replay.shares import tokens_for
from gradsift.run_folder import Run
from gradsift.seals import write_json

if TYPE_CHECKING:
    from gradsift.replay.source import Replay

# Folder of a selection, and in it which rows are of replay.
EXPORT = "export"
REPLAY = "replay.json"


@dataclass(frozen=True)
class Exporter:
    """What writes the rows of a selection for trainers.

    Attributes:
        trainers: In whose forms.
        setup: What these need of the run.
        replay: General rows that come behind the selected ones, if any.
        ratio: Their share of the tokens that have a loss.
    """

    run: Run
    trainers: tuple[str, ...]
    setup: Setup
    replay: Replay | None
    ratio: float

    def write(
        self, kept: pa.Table, folder: Path, seed: int
    ) -> tuple[tuple[Path, ...], tuple[str, ...]]:
        """Write rows for each trainer in place of what a folder holds; returns files and notes.

        Args:
            kept: The selected rows of the pool table; there is a `weight` if that is asked for.
            folder: Stays as it was if anything is refused.
            seed: What rows of replay are drawn with.
        """
        rows, replayed = _own_rows(self.run, kept), None
        if self.replay is not None:
            ids, n_own = kept["instance_id"].to_pylist(), pc.sum(kept["n_response_tokens"]).as_py()
            self.replay.prepare(tokens_for(self.ratio, n_own))
            replayed = self.replay.beside(ids, n_own, self.ratio, seed, "the selection")
        files: list[Path] = []
        notes: list[str] = []
        with _replacing(folder):
            if replayed is not None:
                behind = _rows_of(replayed)
                rows += behind
                ids = [row.instance_id for row in behind]
                write_json(folder / REPLAY, {**replayed.summary(), "ids": ids})
                files.append(folder / REPLAY)
                notes += _notes_on(replayed)
            for trainer in self.trainers:
                exported = write_export(trainer, rows, folder, self.setup)
                files += exported.files
                notes += [f"export {trainer}: {line}" for line in exported.notes]
        return tuple(files), tuple(notes)


def exporter_of(
    run: Run, trainers: Sequence[str], replaying: ReplayConfig, progress: Progress
) -> Exporter | None:
    """Return what writes for so many trainers, with rows of replay read; None for no trainer.

    Raises:
        GradsiftError: If something is missing for it, or there is replay and no trainer.
    """
    if not trainers:
        if replaying.replay is not None:
            raise GradsiftError(
                f"`replay` {replaying.replay}: a selection is your own rows alone; rows of replay "
                "go into an export: add `export`, or leave it out."
            )
        return None
    run.introduce()  # Which has the tokenizer loaded.
    run.require_unchanged_rows()
    replay = None
    if replaying.replay is not None:
        from gradsift.replay.source import replay_of  # Which loads torch.

        replay = replay_of(run, replaying, True, progress)
    setup = Setup(run.config, lambda: run.tokenizer, lambda: run.template_date)
    return Exporter(run, tuple(dict.fromkeys(trainers)), setup, replay, replaying.ratio)


@contextmanager
def _replacing(folder: Path) -> Generator[None, None, None]:
    """Put a folder aside while another is written in its place, and back if that fails.

    Files in it name each other by their place, so it is not written elsewhere.
    """
    aside = folder.with_name(f".{folder.name}.before")
    remove(aside)
    if folder.exists():
        folder.rename(aside)
    try:
        yield
    except BaseException:
        remove(folder)
        if aside.exists():
            aside.rename(folder)
        raise
    remove(aside)


def _rows_of(replayed: Replayed) -> list[ExportRow]:
    return [
        ExportRow(row.instance.instance_id, row.example, row.source, is_replay=True)
        for row in replayed.rows
        if row.example is not None
    ]


def _notes_on(replayed: Replayed) -> list[str]:
    n_rows, warning = len(replayed.rows), replayed.warning()
    n_stopped = sum(not row.finished for row in replayed.rows)
    lines = [
        f"exports: {n_rows} rows of replay ({replayed.of}) come after the selected ones, "
        f"{100 * replayed.share:.1f} % of the tokens that have a loss; {EXPORT}/{REPLAY} names them"
    ]
    lines += [warning] if warning is not None else []
    if n_stopped:
        lines.append(
            f"{n_stopped} of them were still being written when the model was stopped: a trainer "
            "ends them with its end-of-sequence token, unless it cuts them there"
        )
    return lines


def _own_rows(run: Run, kept: pa.Table) -> list[ExportRow]:
    """Return what the selected rows say, in the input's order; `kept` are theirs of the pool table.

    There is a `weight` in it if that is asked for.
    """
    ids = kept["instance_id"].to_pylist()
    weights = kept["weight"].to_pylist() if "weight" in kept.column_names else [None] * len(ids)
    weight_of = dict(zip(ids, weights, strict=True))
    hash_of = dict(zip(ids, kept["content_hash"].to_pylist(), strict=True))
    rows = [
        ExportRow(row.instance_id, row.example, row.source, weight_of[row.instance_id])
        for row in run.pool.rows
        if row.example is not None and hash_of.get(row.instance_id) == row.content_hash
    ]
    if len(rows) != len(ids):  # Read by another gradsift, or by other settings in config.yaml.
        missing = sorted(weight_of.keys() - {row.instance_id for row in rows})
        raise GradsiftError(
            f"{run.folder}: {len(missing)} of the selected rows are not read any more as they were "
            f"when they were captured (the first: {missing[0]!r}). Capture again into a new folder "
            "to export them."
        )
    return rows
