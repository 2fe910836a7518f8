"""A comparison as JSON, as text for a terminal, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradsift.comparison.arms import BASE, FULL
from gradsift.comparison.results import (
    WITHOUT_CAPTURE,
    Scoreboard,
    forgetting_of,
)
from gradsift.evaluation.conclusions import Verdict
from gradsift.evaluation.intervals import SIGNIFICANT, Estimate
from gradsift.evaluation.metrics import GENERAL, LEARNING, METRICS

Table = list[list[str]]


@dataclass(frozen=True)
class CaptureCost:
    """What the preliminary epoch took.

    Attributes:
        seconds: Of the capture.
        n_tokens: Tokens of the pool.
    """

    seconds: float
    n_tokens: int


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        run: The run folder.
        board: The arms' scores.
        verdicts: Answers to the questions.
        capture: What the preliminary epoch took.
        made_with: SelectionConfig that made it.
        notes: What whoever reads it ought to know.
        written: Files with it.
    """

    run: Path
    board: Scoreboard
    verdicts: Sequence[Verdict]
    capture: CaptureCost
    made_with: dict[str, Any]
    notes: tuple[str, ...] = ()
    written: tuple[Path, ...] = ()

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "run": str(self.run),
            "made_with": self.made_with,
            "n_items": dict(self.board.sizes),
            "arms": {label: self._arm(label) for label in self.board.arms},
            "verdicts": [_verdict(verdict) for verdict in self.verdicts],
            "notes": list(self.notes),
            # Apart from the rest, which is the same however often a comparison is interrupted.
            "cost": {label: self.cost(label) for label in self.board.arms},
        }

    def cost(self, label: str) -> dict[str, float | None]:
        """Return what an arm took: means over its trainings, the capture where it needs one."""
        models = self.board.arms[label]
        training = [model.training for model in models if model.training is not None]
        arm = models[0].arm
        captured = arm.is_strategy and arm.name not in WITHOUT_CAPTURE
        return {
            "training_seconds": _mean([one["seconds"] for one in training]),
            "training_tokens": _mean([one["n_tokens"] for one in training]),
            "capture_seconds": self.capture.seconds if captured else 0.0,
            "capture_tokens": self.capture.n_tokens if captured else 0,
            "evaluation_seconds": _mean([model.scores["seconds"] for model in models]),
        }

    def _arm(self, label: str) -> dict[str, Any]:
        board, models = self.board, self.board.arms[label]
        arm = models[0].arm
        general = [name for name in board.metrics if METRICS[name].kind == GENERAL]
        return {
            "name": arm.name,
            "budget": None if arm.budget is None else str(arm.budget),
            "settings": arm.settings,
            "n_seeds": len(models),
            "n_rows": _mean([model.n_rows for model in models]),
            "n_steps": _mean([m.training["n_steps"] for m in models if m.training is not None]),
            "levels": {
                name: {
                    **_estimate(board.level(label, name)),
                    "by_seed": [run.value for run in board.runs(label, name)],
                }
                for name in board.metrics
            },
            "by_source": board.by_source(label),
            "parts": {name: board.parts(label, name) for name in general},
            "forgotten": {
                name: _estimate(found)
                for name, found in ({} if label == BASE else forgetting_of(board, label)).items()
            },
            "forgotten_relative_to_full": relative_to_full(board, label),
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [str(self.run), "", *_aligned(self.main_table()), ""]
        lines += [*_aligned(self.forgetting_table()), ""] if self._tells_of_forgetting else []
        lines += [f"* {verdict.sentence}" for verdict in self.verdicts]
        lines += ["", *self._small_print(), *(f"note: {note}" for note in self.notes)]
        lines += [f"written: {path}" for path in self.written]
        return "\n".join(lines)

    def markdown(self) -> str:
        """Return the same as Markdown."""
        parts = [_markdown(self.main_table())]
        if self._tells_of_forgetting:
            parts.append(_markdown(self.forgetting_table()))
        parts.append("\n".join(f"* {_escaped(verdict.sentence)}" for verdict in self.verdicts))
        parts.append("\n".join([*self._small_print(), *map(_escaped, self.notes)]))
        return "\n\n".join(parts) + "\n"

    @property
    def _tells_of_forgetting(self) -> bool:
        general = any(METRICS[name].kind == GENERAL for name in self.board.metrics)
        return general and BASE in self.board.arms and len(self.board.arms) > 1

    def main_table(self) -> Table:
        """Return the arms with rows, steps, domain metrics and cost."""
        names = [name for name in self.board.metrics if METRICS[name].kind == LEARNING]
        head = ["arm", "seeds", "rows", "steps", *(_arrow(name) for name in names), "minutes"]
        rows = []
        for label, models in self.board.arms.items():
            steps = _mean([m.training["n_steps"] for m in models if m.training is not None])
            cost = self.cost(label)
            minutes = ((cost["training_seconds"] or 0) + (cost["capture_seconds"] or 0)) / 60
            rows.append(
                [
                    label,
                    str(len(models)) if models[0].arm.is_trained else "",
                    f"{_mean([model.n_rows for model in models]):.0f}",
                    "" if steps is None else f"{steps:.0f}",
                    *(_level(name, self.board.level(label, name)) for name in names),
                    f"{minutes:.1f}",
                ]
            )
        return [head, *rows]

    def forgetting_table(self) -> Table:
        """Return the arms with what they forgot: by metric with intervals, then by task."""
        board = self.board
        names = [name for name in board.metrics if METRICS[name].kind == GENERAL]
        parts = {name: board.parts(BASE, name) for name in names}
        head = ["forgotten", *(METRICS[name].label for name in names), "relative to full"]
        head += [part for name in names for part in parts[name] if len(parts[name]) > 1]
        rows = []
        for label in board.arms:
            if label == BASE:
                continue
            forgot = forgetting_of(board, label)
            relative = relative_to_full(board, label)
            row = [label, *(_signed(name, forgot[name]) for name in names)]
            row.append("" if relative is None else f"{relative:+.0f}%")
            for name in names:
                if len(parts[name]) < 2:
                    continue
                sign = 1 if METRICS[name].higher_is_better else -1
                mine = board.parts(label, name)
                row += [
                    f"{sign * (parts[name][part] - mine[part]):+.{METRICS[name].digits}f}"
                    for part in mine
                ]
            rows.append(row)
        return [head, *rows]

    def _small_print(self) -> list[str]:
        sizes = self.board.sizes
        n_tasks = sum(name.startswith("task:") for name in sizes)
        asked = f"{sizes['rows']} held-out rows"
        if n_tasks:
            n = sum(size for name, size in sizes.items() if name.startswith("task:"))
            asked += f", {n} items of {n_tasks} general tasks"
        return [
            f"{asked}; ± and [ ] are 95 % intervals over items and seeds (items only, where an arm "
            "was trained once and no other twice), each for itself; p-values are adjusted for the "
            "number of arms and metrics (Holm), so one may be above 0.05 beside an interval "
            "without 0. ±? means one item, hence no interval.",
            "minutes: training, and the preliminary epoch where an arm needs it. forgotten: base "
            "less arm (of losses: arm less base), above 0 is forgotten.",
        ]


def relative_to_full(board: Scoreboard, label: str) -> float | None:
    """Return how much more an arm forgot than full fine-tuning, in per cent, as the paper counts.

    Args:
        board: All arms.
        label: Of the arm.

    Returns:
        −100 is nothing forgotten; None where full did not measurably forget, or is not there.
    """
    if BASE not in board.arms or FULL not in board.arms or label in (BASE, FULL):
        return None
    if "accuracy" not in board.metrics:
        return None
    full = board.difference(BASE, FULL, "accuracy")
    if full.value <= 0 or full.p >= SIGNIFICANT:
        return None
    return 100 * (board.difference(BASE, label, "accuracy").value / full.value - 1)


def _verdict(verdict: Verdict) -> dict[str, Any]:
    question = verdict.question
    return {
        "question": question.kind,
        "arm": question.arm,
        "rival": question.rival,
        "answer": verdict.answer,
        "sentence": verdict.sentence,
        "differences": {name: _estimate(one) for name, one in question.differences.items()},
        "adjusted_p": verdict.adjusted_p,
    }


def _estimate(found: Estimate) -> dict[str, Any]:
    # JSON knows no infinity: where there is no interval, its ends are null.
    ends = {end: getattr(found, end) for end in ("low", "high")}
    return {
        "value": found.value,
        **{end: value if math.isfinite(value) else None for end, value in ends.items()},
        "p": found.p,
        "n_items": found.n_items,
        "n_seeds": list(found.n_seeds),
    }


def _level(name: str, found: Estimate) -> str:
    return f"{found.value:.{METRICS[name].digits}f} ± {_half_width(name, found)}"


def _signed(name: str, found: Estimate) -> str:
    return f"{found.value:+.{METRICS[name].digits}f} ± {_half_width(name, found)}"


def _half_width(name: str, found: Estimate) -> str:
    half = found.high - found.value
    return f"{half:.{METRICS[name].digits}f}" if math.isfinite(half) else "?"


def _arrow(name: str) -> str:
    return f"{METRICS[name].label} {'↑' if METRICS[name].higher_is_better else '↓'}"


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _aligned(table: Table) -> list[str]:
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    return [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _markdown(table: Table) -> str:
    head, *rows = [[_escaped(cell) for cell in row] for row in table]
    ruler = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ruler, *rows))


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
