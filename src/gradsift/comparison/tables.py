"""A comparison as JSON, as text for a terminal, and as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradsift.comparison.arms import BASE
from gradsift.comparison.results import Scoreboard
from gradsift.evaluation.conclusions import Verdict
from gradsift.evaluation.intervals import Estimate, Interval
from gradsift.evaluation.metrics import GENERAL, LEARNING, METRICS
from gradsift.html_tables import html_list, html_table
from gradsift.training.loss_curve import first_and_last
from gradsift.wording import in_line, joined

Table = list[list[str]]

_PERCENT = "{value:+.0f}% [{low:+.0f}, {high:+.0f}]"
_SMALL_PRINT = (
    "; ± and [ ] are 95 % intervals over items and trainings, each for itself; p-values are "
    "adjusted for the number of arms and metrics (Holm), so one may be above 0.05 beside an "
    "interval without 0. ±? means one item, hence no interval.",
    "minutes: training, and the preliminary epoch where an arm needs it. forgotten: base less arm "
    "(of losses: arm less base), above 0 is forgotten.",
)


@dataclass(frozen=True)
class Comparison:
    """A finished comparison.

    Attributes:
        run: The run folder.
        board: The arms' scores.
        verdicts: Answers to the questions.
        capture_seconds: What the preliminary epoch took.
        capture_tokens: Tokens of the pool.
        made_with: Settings that made it.
        notes: What whoever reads it ought to know.
        written: Files with it.
    """

    run: Path
    board: Scoreboard
    verdicts: Sequence[Verdict]
    capture_seconds: float
    capture_tokens: int
    made_with: dict[str, Any]
    notes: tuple[str, ...] = ()
    written: tuple[Path, ...] = ()

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        board = self.board
        n_models = sum(map(len, board.models.values()))
        return in_line(
            f"Comparison({len(board.arms)} arms, {n_models} models, {board.sizes['rows']} held-out "
            f"rows, {len(self.verdicts)} verdicts, of {self.run})"
        )

    def _repr_html_(self) -> str:
        (head, *rows), *others = self._tables()
        parts = [html_table(repr(self), head, rows)]
        parts += [html_table("", head, rows) for head, *rows in others]
        return "\n".join([*parts, html_list(verdict.sentence for verdict in self.verdicts)])

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            "run": str(self.run),
            "made_with": self.made_with,
            "n_items": dict(self.board.sizes),
            "signatures": self.board.signatures,
            "arms": {label: self._arm(label) for label in self.board.arms},
            "verdicts": [_verdict(verdict) for verdict in self.verdicts],
            "notes": list(self.notes),
            # Apart from the rest, which is the same however often a comparison is interrupted.
            "cost": {label: self.cost(label) for label in self.board.arms},
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [str(self.run), *(f"* {verdict.sentence}" for verdict in self.verdicts)]
        lines += [f"note: {note}" for note in self.notes]
        for table in self._tables():
            lines += ["", *_aligned(table)]
        lines += ["", *self._small_print(), *self._losses()]
        lines += [f"written: {path}" for path in self.written]
        return joined(lines)

    def markdown(self) -> str:
        """Return the same as Markdown."""
        parts = ["\n".join(f"* {_escaped(verdict.sentence)}" for verdict in self.verdicts)]
        parts += [_markdown(table) for table in self._tables()]
        losses_and_notes = map(_escaped, [*self._losses(), *self.notes])
        parts.append("\n".join([*self._small_print(), *losses_and_notes]))
        return "\n\n".join(parts) + "\n"

    def cost(self, label: str) -> dict[str, float | None]:
        """Return what an arm took: means over its trainings, the capture where it needs one."""
        arm, models = self.board.arms[label], self.board.models[label]
        trainings = [model.training for model in models if model.training is not None]
        return {
            "training_seconds": _mean([training["seconds"] for training in trainings]),
            "training_tokens": _mean([training["n_tokens"] for training in trainings]),
            "capture_seconds": self.capture_seconds if arm.needs_capture else 0.0,
            "capture_tokens": self.capture_tokens if arm.needs_capture else 0,
            "evaluation_seconds": _mean([model.scores["seconds"] for model in models]),
        }

    def _arm(self, label: str) -> dict[str, Any]:
        board, arm, models = self.board, self.board.arms[label], self.board.models[label]
        return {
            "name": arm.name,
            "budget": None if arm.budget is None else str(arm.budget),
            "settings": arm.settings,
            "family": arm.family,
            "replay": self._replay(label),
            "n_seeds": len(models),
            "n_rows": _mean([model.n_rows for model in models]),
            "n_steps": self._n_steps(label),
            "training_loss": self._training_loss(label),
            "levels": {
                name: {
                    **_estimate(board.level(label, name)),
                    "by_seed": [replicated.value for replicated in board.replicates(label, name)],
                }
                for name in board.metrics
            },
            "by_source": board.by_source(label),
            "by_language": board.by_language(label),
            "parts": {name: board.parts(label, name) for name in board.measured(GENERAL)},
            "forgotten": {
                name: _estimate(estimate) for name, estimate in board.forgetting(label).items()
            },
            "forgotten_relative_to_full": _relative(board.relative_to_full(label)),
        }

    def _replay(self, label: str) -> dict[str, Any] | None:
        """Return where an arm's rows of replay come from, and how much they are, as means."""
        found = [one.replay for one in self.board.models[label] if one.replay is not None]
        if not found:
            return None
        means = {key: _mean([one[key] for one in found]) for key in ("share", "n_rows", "n_tokens")}
        return {"rows_of": found[0]["rows_of"], "ratio": found[0]["ratio"], **means}

    def _training_loss(self, label: str) -> dict[str, float] | None:
        """Return what an arm's losses were at both ends of its trainings, as means over these."""
        trainings = [one.training or {} for one in self.board.models[label]]
        curves = [first_and_last(training.get("loss_curve", ())) for training in trainings]
        found = [one for one in curves if one is not None]
        ends = ("first", "last")
        return {end: _mean([one[end] for one in found]) for end in ends} if found else None

    def _losses(self) -> list[str]:
        ends = {label: self._training_loss(label) for label in self.board.arms}
        shown = [f"{label} {e['first']:.3f} → {e['last']:.3f}" for label, e in ends.items() if e]
        if not shown:
            return []
        steps = "tenth of the steps (more, where more were logged together)"
        return [f"training loss, first → last {steps}: {'; '.join(shown)}."]

    def _n_steps(self, label: str) -> float | None:
        models = self.board.models[label]
        return _mean([model.n_steps for model in models if model.n_steps is not None])

    def _tables(self) -> list[Table]:
        board = self.board
        shows_forgetting = board.measured(GENERAL) and BASE in board.arms and len(board.arms) > 1
        tables = [self.main_table()]
        return [*tables, self.forgetting_table()] if shows_forgetting else tables

    def main_table(self) -> Table:
        """Return the arms with rows, steps, domain metrics and cost."""
        board, names = self.board, self.board.measured(LEARNING)
        replayed = {label: self._replay(label) for label in board.arms}
        more = ["tokens", "replay"] if any(replayed.values()) else []
        head = ["arm", "seeds", "rows", "steps", *more, *map(_arrow, names), "minutes"]
        rows = []
        for label, models in board.models.items():
            steps, cost = self._n_steps(label), self.cost(label)
            minutes = ((cost["training_seconds"] or 0) + (cost["capture_seconds"] or 0)) / 60
            rows.append(
                [
                    label,
                    str(len(models)) if board.arms[label].is_trained else "",
                    f"{_mean([model.n_rows for model in models]):.0f}",
                    "" if steps is None else f"{steps:.0f}",
                    *(self._trained_on(label, replayed[label]) if more else []),
                    *(_level(name, board.level(label, name)) for name in names),
                    f"{minutes:.1f}",
                ]
            )
        return [head, *rows]

    def _trained_on(self, label: str, replay: dict[str, Any] | None) -> list[str]:
        n_tokens = self.cost(label)["training_tokens"]
        share = "" if replay is None else f"{100 * replay['share']:.1f}%"
        return ["" if n_tokens is None else f"{n_tokens:.0f}", share]

    def forgetting_table(self) -> Table:
        """Return the arms with what they forgot: by metric with intervals, then by task."""
        board, names = self.board, self.board.measured(GENERAL)
        parts = {name: board.parts(BASE, name) for name in names}
        divided = [name for name in names if len(parts[name]) > 1]
        head = ["forgotten", *(METRICS[name].label for name in names), "relative to full"]
        head += [part for name in divided for part in parts[name]]
        rows = []
        for label in board.arms:
            if label == BASE:
                continue
            forgotten, relative = board.forgetting(label), _relative(board.relative_to_full(label))
            row = [label, *(_signed(name, forgotten[name]) for name in names)]
            row.append("" if relative is None else _PERCENT.format(**relative))
            for name in divided:
                sign = 1 if METRICS[name].higher_is_better else -1
                row += [
                    f"{sign * (parts[name][part] - value):+.{METRICS[name].digits}f}"
                    for part, value in board.parts(label, name).items()
                ]
            rows.append(row)
        return [head, *rows]

    def _small_print(self) -> list[str]:
        sizes = self.board.sizes
        tasks = [size for name, size in sizes.items() if name.startswith("task:")]
        asked = f"{sizes['rows']} held-out rows"
        if tasks:
            asked += f", {sum(tasks)} items of {len(tasks)} general tasks"
        first, *others = _SMALL_PRINT
        signatures = self.board.signatures
        how = [
            f"{METRICS[name].label} {signatures[name]}"
            for name in self.board.metrics
            if name in signatures
        ]
        if any(arm.replay_share for arm in self.board.arms.values()):
            others.append(
                "tokens: trained on in all passes. replay: share of general rows in the tokens "
                "that have a loss; they are among rows, steps and tokens."
            )
        return [asked + first, *others, *(["signatures: " + "; ".join(how) + "."] if how else [])]


def _relative(interval: Interval | None) -> dict[str, float] | None:
    # In per cent, as the paper counts.
    return None if interval is None else {key: 100 * v for key, v in vars(interval).items()}


def _verdict(verdict: Verdict) -> dict[str, Any]:
    question = verdict.question
    differences = question.differences.items()
    return {
        "question": question.kind,
        "arm": question.arm,
        "rival": question.rival,
        "answer": verdict.answer,
        "sentence": verdict.sentence,
        "differences": {name: _estimate(estimate) for name, estimate in differences},
        "adjusted_p": verdict.adjusted_p,
        # Of these no interval holds how trainings differ: it is over items only.
        "spread_unknown": question.of_unknown_spread,
    }


def _estimate(estimate: Estimate) -> dict[str, Any]:
    # JSON knows no infinity: where there is no interval, its ends are null.
    ends = {"low": estimate.low, "high": estimate.high}
    return {
        "value": estimate.value,
        **{end: value if math.isfinite(value) else None for end, value in ends.items()},
        "p": estimate.p,
        "n_items": estimate.n_items,
        "n_seeds": list(estimate.n_seeds),
    }


def _level(name: str, estimate: Estimate) -> str:
    return f"{estimate.value:.{METRICS[name].digits}f} ± {_half_width(name, estimate)}"


def _signed(name: str, estimate: Estimate) -> str:
    return f"{estimate.value:+.{METRICS[name].digits}f} ± {_half_width(name, estimate)}"


def _half_width(name: str, estimate: Estimate) -> str:
    half = estimate.high - estimate.value
    return f"{half:.{METRICS[name].digits}f}" if math.isfinite(half) else "?"


def _arrow(name: str) -> str:
    return f"{METRICS[name].label} {'↑' if METRICS[name].higher_is_better else '↓'}"


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _aligned(table: Table) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
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
