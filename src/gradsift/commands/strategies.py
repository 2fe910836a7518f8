"""Rules side by side: what each strategy would keep of one run, and how alike they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradsift.commands.select import Files
from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.audit import Audit, audit, audit_summary, overlap
from gradsift.selection.constraints import Budget
from gradsift.selection.objective import Losses, losses
from gradsift.selection.selector import choose_rows, make_signal
from gradsift.selection.strategies.base import Need
from gradsift.selection.strategies.catalogue import STRATEGIES
from gradsift.stages.candidates import candidates_of, context_of, has_losses
from gradsift.store.reader import GradientStore
from gradsift.store.tables import read_pool_table

# What these cost grows with the square of the rows, so that they wait to be asked for.
_SLOW = ("k-center", "fisher", "spice", "rds")
_SLOW_ABOVE_ROWS = 20_000


@dataclass(frozen=True)
class Score:
    """What one strategy keeps."""

    strategy: str
    losses: Losses
    audit: Audit


@dataclass(frozen=True)
class SideBySide:
    """Several strategies on one run and budget.

    Attributes:
        run: The run folder.
        budget: As it was given.
        sides: In the order of STRATEGIES.
        overlap_KK: Jaccard's index of each pair.
        left_out: Strategy → why it was not tried.
    """

    run: str
    budget: str
    sides: tuple[Score, ...]
    overlap_KK: np.ndarray
    left_out: dict[str, str]

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        names = [side.strategy for side in self.sides]
        return {
            "run": self.run,
            "budget": self.budget,
            "strategies": {
                side.strategy: {**vars(side.losses), **audit_summary(side.audit)}
                for side in self.sides
            },
            "overlap": {
                name: dict(zip(names, map(float, row), strict=True))
                for name, row in zip(names, self.overlap_KK, strict=True)
            },
            "left_out": self.left_out,
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        pool = self.sides[0].audit
        head = (
            f"{'':28}{'rows':>7}{'tokens':>8}{'loss':>7}{'score':>7}{'density':>9}"
            f"{'content':>9}{'similar':>9}{'repeats':>9}{'topics':>8}{'sources':>9}"
        )
        lines = [f"{self.run}, budget {self.budget}", "", head]
        lines.append(
            f"{'(pool)':28}{pool.n_rows[0]:7}{pool.response_tokens[0]:8.0f}{pool.loss[0]:7.2f}"
            f"{pool.gradient_score[0]:7.2f}{'':27}{100 * pool.duplicate_share[0]:8.1f}%"
        )
        for side in self.sides:
            found, of = side.audit, side.losses
            sources = "" if found.sources is None else f"{found.sources.distance:.2f}"
            lines.append(
                f"{side.strategy:28}{found.n_rows[1]:7}{found.response_tokens[1]:8.0f}"
                f"{found.loss[1]:7.2f}{found.gradient_score[1]:7.2f}{of.density:9.3f}"
                f"{of.content_diversity:9.3f}{of.similarity:9.3f}"
                f"{100 * found.duplicate_share[1]:8.1f}%{found.topics.distance:8.2f}{sources:>9}"
            )
        lines += [
            "",
            "tokens: median of the response; density, content, similar: losses, lower is better;",
            "repeats: near-duplicates of another kept row; topics, sources: distance from the",
            "pool's mix, 0 alike to 1. None of it says which subset trains the better model.",
            "",
            "overlap (100 x rows in both / rows in either):",
            " " * 28 + "".join(f"{number:4}" for number in range(1, len(self.sides) + 1)),
        ]
        for number, (side, row) in enumerate(zip(self.sides, self.overlap_KK, strict=True), 1):
            label = f"{number:3} {side.strategy}"
            lines.append(f"{label:28}" + "".join(f"{100 * value:4.0f}" for value in row))
        lines += ["", *(f"left out: {name}: {why}" for name, why in self.left_out.items())]
        return "\n".join(lines).rstrip()


def compare_strategies(
    store: GradientStore,
    budget: Budget,
    settings: SelectionConfig,
    files: Files,
    names: Sequence[str] = (),
) -> SideBySide:
    """Let several strategies select from one run, without writing anything.

    Args:
        store: A complete gradient store.
        budget: How much to select; not "auto".
        settings: Of the selection; its strategy is ignored.
        files: Reference runs and lists of ids.
        names: Strategies; empty for all that can be had from what is there.

    Returns:
        The comparison.

    Raises:
        ValueError: If a strategy is unknown, or was named and cannot be had.
    """
    if budget.kind == "auto":
        raise GradsiftError("budget auto differs from strategy to strategy: give a number.")
    unknown = [name for name in names if name not in STRATEGIES]
    if unknown:
        raise GradsiftError(f"strategy {unknown[0]!r}: expected one of {', '.join(STRATEGIES)}.")
    left_out = {} if names else _not_to_be_had(store, files)
    chosen = [name for name in STRATEGIES if (name in names or not names) and name not in left_out]
    needs = {need for name in chosen for need in STRATEGIES[name].needs} | settings.needs
    pool = candidates_of(store, read_pool_table(store.folder), needs)
    context = context_of(store, needs, **vars(files))
    signal = make_signal(pool, settings)
    subsets, sides = [], []
    for name in chosen:
        rows_S = choose_rows(pool, budget, settings.model_copy(update={"strategy": name}), context)
        subsets.append(rows_S)
        near = settings.similarity_threshold
        found = audit(pool, rows_S, signal.score_N, context.cluster_N, context.neighbours, near)
        of = losses(rows_S, signal.density.log_N, context.neighbours, near)
        sides.append(Score(name, of, found))
    overlap_KK = np.array([[overlap(a, b) for b in subsets] for a in subsets])
    return SideBySide(str(store.folder), str(budget), tuple(sides), overlap_KK, left_out)


def _not_to_be_had(store: GradientStore, files: Files) -> dict[str, str]:
    missing = {}
    if files.anchor is None:
        missing[Need.ANCHOR] = "needs `anchor` RUN, a captured set of general rows"
    if files.target is None:
        missing[Need.TARGET] = "needs `target` RUN, a captured set of target rows"
    if not has_losses(store):
        missing[Need.LOSSES] = f"needs a further pass: gradsift losses {Path(store.folder)}"
    left_out = {}
    for name, strategy in STRATEGIES.items():
        why = next((missing[need] for need in strategy.needs if need in missing), None)
        if why is None and name in _SLOW and len(store.instance_ids) > _SLOW_ABOVE_ROWS:
            why = f"slow above {_SLOW_ABOVE_ROWS} rows: name it with `strategy` {name}"
        if why is not None:
            left_out[name] = why
    return left_out
