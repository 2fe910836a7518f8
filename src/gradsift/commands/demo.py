"""The whole job on an embedded default: a small model, and Python's own documentation."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from gradsift.commands.capture import capture_run
from gradsift.commands.select import SelectResult, select_run
from gradsift.config import DemoConfig
from gradsift.data.demo_data import write_demo_pool
from gradsift.data.pool import load_pool
from gradsift.decided import DECISIONS
from gradsift.progress import Progress, no_progress
from gradsift.run_folder import Run
from gradsift.schema import takes, validated
from gradsift.selection.constraints import parse_budget
from gradsift.wording import joined

if TYPE_CHECKING:
    from gradsift.comparison.tables import Comparison

logger = logging.getLogger(__name__)

POOL_FILE = "stdlib-docs.jsonl"
HELD_OUT_FILE = "held-out.jsonl"
HELD_OUT_ROWS = 32
MAX_LENGTH = 160
# Each checkpoint of the demo model is 1.6 GB.
SAVE_STEPS = 10
SHOWN = 3
# One training of each arm: what fits into a quarter of an hour on two cores.
COMPARED = ("base", "full", "random", "grads")
COMPARISON = {"seeds": 1, "epochs": 1, "max_new_tokens": 32, "sft": {"learning_rate": 1e-4}}


@dataclass(frozen=True)
class DemoResult:
    """What the demo did.

    Attributes:
        selected: The selection.
        kept: A few kept rows: (id, answer, reason).
        rejected: A few rejected ones.
        comparison: What models learnt from it and from its rivals, if that was asked for.
    """

    selected: SelectResult
    kept: list[tuple[str, str, str]]
    rejected: list[tuple[str, str, str]]
    comparison: Comparison | None = None

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        return f"DemoResult({self.selected!r}, {self.comparison!r})"

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        shown = {"kept": self.kept, "rejected": self.rejected}
        if self.comparison is not None:
            shown["comparison"] = self.comparison.summary()
        return {**self.selected.summary(), **shown}

    def text(self) -> str:
        """Return what a person wants to know."""
        run = self.selected.folder.parent.parent
        # Its own rows are shown below, with the reasons.
        lines = replace(self.selected, examples=()).lines()
        for title, rows in (("kept", self.kept), ("not kept", self.rejected)):
            lines += ["", f"A few rows that were {title}:"]
            for row_id, answer, reason in rows:
                lines += [f"  {row_id}: {_short(answer)}", f"      {reason}"]
        if self.comparison is not None:
            lines += ["", *self.comparison.text().split("\n")]
        example = self.rejected[0][0] if self.rejected else self.kept[0][0]
        lines += [
            "",
            "Next, in seconds:",
            f"  gradsift select {run} --budget 5%",
            f"  gradsift select {run} --budget 50% --strategy random",
            f"  gradsift show {run} --rejected",
            f"  gradsift explain {run} {example}",
            f"  gradsift report {run}",
        ]
        if self.comparison is None:
            lines += [
                "Does it train a better model? In a quarter of an hour:",
                f"  gradsift demo --compare --out {run}",
            ]
        lines += [
            "With your own file:",
            "  gradsift run FILE --model MODEL --budget 50% --out runs/mine",
        ]
        return joined(lines)


@takes(DemoConfig)
def demo(*, progress: Progress = no_progress, **settings: Any) -> DemoResult:
    """Sample the demo pool, capture with the demo model, select, and pick rows to show.

    Args:
        progress: Called with rows done, rows in all, tokens done, tokens in all.
        **settings: See Settings.

    Returns:
        What to show.

    Raises:
        GradsiftError: If a setting does not fit.
    """
    config = validated(DemoConfig, settings)
    out, budget = Path(config.out), parse_budget(config.budget)
    data, held_out = out / POOL_FILE, out / HELD_OUT_FILE
    in_all = write_demo_pool(
        data, config.rows, config.seed, held_out=held_out, n_held_out=HELD_OUT_ROWS
    )
    logger.info(
        f"demo pool: {config.rows} of {in_all} documented names of Python's standard library"
    )
    run = Run.new(
        "demo",
        load_pool(str(data)),
        out=out,
        max_length=MAX_LENGTH,
        seed=config.seed,
        save_steps=SAVE_STEPS,
    )
    capture_run(run, progress)
    selected = select_run(run, budget, run.config, name=None, weights=False, details=False)
    answers = {row["id"]: row["answer"] for row in map(json.loads, data.open(encoding="utf-8"))}
    decisions = pq.read_table(selected.folder / DECISIONS).to_pylist()

    def few(decision: str) -> list[tuple[str, str, str]]:
        rows = [row for row in decisions if row["decision"] == decision]
        rows.sort(key=lambda row: -row["marginal_gain"])
        # From the best to the worst, evenly.
        step = max(1, (len(rows) - 1) // (SHOWN - 1)) if len(rows) > 1 else 1
        ids = rows[::step][:SHOWN]
        return [(row["instance_id"], answers[row["instance_id"]], row["reason"]) for row in ids]

    comparison = None
    if config.compare:
        # Heavy, and only needed here.
        from gradsift.commands.compare import compare

        comparison = compare(
            run,
            test=str(held_out),
            arms=COMPARED,
            budgets=(config.budget,),
            seed=config.seed,
            progress=progress,
            **COMPARISON,
        )
    return DemoResult(selected, few("selected"), few("rejected"), comparison)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else f"{line[:67]}..."
