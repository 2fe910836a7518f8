"""Audit: how many rows of a pool are faulty, and which, by the gate."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from gradsift.commands.reference_losses import reference_losses
from gradsift.config import GateConfig, RowsConfig, SelectionConfig, TrustConfig
from gradsift.console import shows_progress
from gradsift.data.example import Example, last_exchange
from gradsift.errors import GradsiftError
from gradsift.progress import Progress
from gradsift.run_folder import Run
from gradsift.schema import split_settings, takes
from gradsift.selection.audit import repeated_share
from gradsift.selection.candidates import Need
from gradsift.selection.conditions import gate_of
from gradsift.selection.gate import NO_TEXT, UNRELATED, CannotJudge, Gate
from gradsift.store.reader import GradientStore
from gradsift.wording import in_line, joined, short

_EXTRACT = 90

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NamedRow:
    """A row that the gate calls faulty, with the beginnings of what it says."""

    instance_id: str
    place: str
    reason: str
    detail: str
    advantage: float | None
    p: float | None
    loss: float
    prompt: str
    answer: str


@dataclass(frozen=True)
class AuditResult:
    """How many rows of a pool are faulty, and which.

    Attributes:
        run: The run folder.
        n_rows: Rows that can be selected.
        gate: What became of each; None where that cannot be told.
        cannot: Why it cannot be told, else None.
        duplicate_share: Share of the rows that nearly repeat an earlier one (by id).
        cut_prompts: Rows that lost the beginning of their prompt to `max_length`.
        rows: Rows that are called faulty, of each reason the worst first, as many as asked for.
    """

    run: str
    n_rows: int
    gate: Gate | None
    cannot: str | None
    duplicate_share: float
    cut_prompts: int
    rows: tuple[NamedRow, ...]

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        found = "cannot tell which are faulty"
        if self.gate is not None:
            found = f"{self.gate.n_passing} of them pass, {len(self.rows)} named"
        return in_line(f"AuditResult({self.n_rows} rows, {found}, of {self.run})")

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "run": self.run,
            "n_rows": self.n_rows,
            "gate": None if self.gate is None else self.gate.summary(),
            "cannot": self.cannot,
            "duplicate_share": self.duplicate_share,
            "cut_prompts": self.cut_prompts,
            "named": [vars(row) for row in self.rows],
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [f"{self.n_rows} rows of {self.run}", ""]
        gate = self.gate
        if gate is None:
            lines.append(str(self.cannot))
        else:
            lines += gate.lines()
        if self.cut_prompts:
            lines.append(
                f"{self.cut_prompts} rows lost the beginning of their prompt (truncation: "
                "keep_end): they are judged by what is left of it, which may not be enough"
            )
        lines.append(f"near-duplicates of an earlier row: {100 * self.duplicate_share:.1f} %")
        if gate is not None:
            good, n = (1 - gate.unrelated_share.estimate) * gate.n_judged, gate.n_judged
            lines += [
                f"pass: {gate.n_passing} rows ({100 * gate.n_passing / self.n_rows:.0f} %)",
                f"about {good:.0f} of {n} judged answers fit their prompt, by the estimate above: "
                "a larger budget must take others, too",
                "",
            ]
            for reason in (UNRELATED, NO_TEXT):
                rows = [row for row in self.rows if row.reason == reason]
                lines += [f"{reason}, the worst:"] if rows else []
                for row in rows:
                    lines += [
                        f"  {row.instance_id} ({row.place}): {row.detail}",
                        f"    prompt: {row.prompt}",
                        f"    answer: {row.answer}",
                    ]
            run = shlex.quote(self.run)
            lines += ["", f"without them: gradsift select {run} --budget 50% --gate"]
        return joined(lines)


@takes(GateConfig, RowsConfig, TrustConfig)
@shows_progress
def audit(
    run: str | Path | GradientStore | Run,
    *,
    n: int = 10,
    progress: Progress | bool = True,
    **settings: Any,
) -> AuditResult:
    """Estimate how many rows of a captured run are faulty, and name them.

    A row is called faulty if its answer is no likelier after its own prompt than after that of
    another row, or hardly text. Reference losses that are missing are computed first.

    Args:
        run: A run folder, or its store.
        n: Rows shown for each reason, the worst first.
        progress: True shows a bar (lines where stderr is no terminal), False nothing; a function is
            called with rows done, rows in all, tokens done, tokens in all.
        **settings: `gate_threshold`, and where the rows are; see Settings.

    Returns:
        The estimate and the rows.

    Raises:
        GradsiftError: If a setting does not fit, or rows or model changed since the capture.
    """
    if n < 0:
        raise GradsiftError(f"`n` is {n}, expected 0 or more.")
    config, rows, trust = split_settings(settings, GateConfig, RowsConfig, TrustConfig)
    run = Run.of(run, data=rows.data, trust_remote_code=trust.trust_remote_code)
    run.require_unchanged_rows()
    if not run.has_reference_losses:
        logger.info("the audit needs reference losses: four forward passes over all rows")
        reference_losses(run, progress=progress)
    pool = run.candidates([Need.REFERENCE_LOSSES])
    gate, cannot = None, None
    try:
        gate = gate_of(pool, config)
    except CannotJudge as error:
        cannot = str(error)
    neighbours, _ = run.content
    repeated = repeated_share(
        neighbours, np.arange(len(pool)), SelectionConfig().similarity_threshold
    )
    named = () if gate is None else _worst(run, pool.ids, gate, n)
    return AuditResult(
        str(run.folder), len(pool), gate, cannot, repeated, _n_cut_prompts(run), named
    )


def _n_cut_prompts(run: Run) -> int:
    if run.config.truncation != "keep_end":
        return 0
    return pc.sum(run.pool_table["truncated"]).as_py() or 0


def _worst(run: Run, ids: list[str], gate: Gate, n: int) -> tuple[NamedRow, ...]:
    # No p is NaN where it is needed: a row of that reason was judged.
    orders = {
        UNRELATED: np.lexsort((gate.advantage_N, -gate.p_N)),
        NO_TEXT: np.argsort(-gate.unlikely_N, kind="stable"),
    }
    reasons = gate.reasons
    worst = [
        at
        for reason, order_N in orders.items()
        for at in [at for at in order_N.tolist() if reasons[at] == reason][:n]
    ]
    if not worst:
        return ()
    wanted = {ids[at] for at in worst}
    rows = {row.instance_id: row for row in run.pool.rows if row.instance_id in wanted}
    if missing := wanted - rows.keys():
        raise GradsiftError(
            f"{run.folder}: row {min(missing)!r} is not among its rows any more. Capture again "
            "into a new folder."
        )
    return tuple(
        NamedRow(
            ids[at],
            rows[ids[at]].place,
            str(reasons[at]),
            gate.detail(at),
            _or_none(gate.advantage_N[at]),
            _or_none(gate.p_N[at]),
            float(gate.loss_N[at]),
            *_extracts(rows[ids[at]].example),
        )
        for at in worst
    )


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _extracts(example: Example | None) -> tuple[str, str]:
    """Return the beginnings of what stands before the last answer, and of that answer."""
    if example is None:
        return "", ""
    prompt, answer = last_exchange(example)
    return in_line(short(prompt, _EXTRACT)), in_line(short(answer, _EXTRACT))
