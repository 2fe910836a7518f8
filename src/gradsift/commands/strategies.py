"""Strategies compared: what each would keep of one run, and how alike the subsets are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradsift.commands.stability import open_line
from gradsift.config import RowsConfig, SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.schema import split_settings, takes
from gradsift.selection.audit import Audit, audit_of, audit_summary, overlap
from gradsift.selection.candidates import Need
from gradsift.selection.conditions import n_open
from gradsift.selection.constraints import parse_budget
from gradsift.selection.density import UNIT as DENSITY_UNIT
from gradsift.selection.objective import Criteria, criteria_of
from gradsift.selection.scores import SCORES
from gradsift.selection.selector import choose_rows, make_signal
from gradsift.selection.strategies.catalogue import STRATEGIES, needs_of
from gradsift.store.reader import GradientStore
from gradsift.wording import in_line, joined


@dataclass(frozen=True)
class Outcome:
    """What one strategy keeps."""

    strategy: str
    criteria: Criteria
    audit: Audit


@dataclass(frozen=True)
class StrategiesResult:
    """Several strategies on one run and budget.

    Attributes:
        run: The run folder.
        budget: As it was given.
        n_open: Rows that gate, quotas and lists leave.
        outcomes: In the order of STRATEGIES.
        overlap_KK: Jaccard's index of each pair.
        left_out: Strategy → why it was not tried.
    """

    run: str
    budget: str
    n_open: int
    outcomes: tuple[Outcome, ...]
    overlap_KK: np.ndarray
    left_out: dict[str, str]

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        out = f", {len(self.left_out)} left out" if self.left_out else ""
        return in_line(
            f"StrategiesResult({len(self.outcomes)} strategies{out}, budget {self.budget}, of "
            f"{self.run})"
        )

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        names = [outcome.strategy for outcome in self.outcomes]
        return {
            "run": self.run,
            "budget": self.budget,
            "n_open": self.n_open,
            "strategies": {
                outcome.strategy: {**vars(outcome.criteria), **audit_summary(outcome.audit)}
                for outcome in self.outcomes
            },
            "overlap": {
                name: dict(zip(names, map(float, row), strict=True))
                for name, row in zip(names, self.overlap_KK, strict=True)
            },
            "left_out": self.left_out,
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        pool = self.outcomes[0].audit
        head = (
            f"{'':28}{'rows':>7}{'tokens':>8}{'loss':>7}{'score':>7}{'density':>9}"
            f"{'content':>9}{'similar':>9}{'repeats':>9}{'clusters':>9}{'sources':>9}"
        )
        left = open_line(pool.n_rows[0], self.n_open)
        lines = [f"{self.run}, budget {self.budget}", *left, "", head]
        lines.append(
            f"{'(pool)':28}{pool.n_rows[0]:7}{pool.response_tokens[0]:8.0f}{pool.loss[0]:7.2f}"
            f"{pool.gradient_score[0]:7.2f}{'':27}{100 * pool.duplicate_share[0]:8.1f}%"
        )
        for outcome in self.outcomes:
            audit, criteria = outcome.audit, outcome.criteria
            sources = "" if audit.sources is None else f"{audit.sources.distance:.2f}"
            lines.append(
                f"{outcome.strategy:28}{audit.n_rows[1]:7}{audit.response_tokens[1]:8.0f}"
                f"{audit.loss[1]:7.2f}{audit.gradient_score[1]:7.2f}{criteria.density:9.3f}"
                f"{criteria.content_diversity:9.3f}{criteria.similarity:9.3f}"
                f"{100 * audit.duplicate_share[1]:8.1f}%{audit.clusters.distance:9.2f}{sources:>9}"
            )
        lines += [
            "",
            "tokens: median of the response; density, content, similar: criteria, lower is better",
            f"(density {DENSITY_UNIT});",
            "repeats: near-duplicates of another kept row; clusters, sources: distance from the",
            "pool's mix, 0 alike to 1. None of it says which subset trains the better model.",
            "",
            "overlap (100 x rows in both / rows in either):",
            " " * 28 + "".join(f"{number:4}" for number in range(1, len(self.outcomes) + 1)),
        ]
        for number, (outcome, row) in enumerate(
            zip(self.outcomes, self.overlap_KK, strict=True), 1
        ):
            label = f"{number:3} {outcome.strategy}"
            lines.append(f"{label:28}" + "".join(f"{100 * value:4.0f}" for value in row))
        lines += ["", *(f"left out: {name}: {why}" for name, why in self.left_out.items())]
        return joined(lines).rstrip()


@dataclass(frozen=True)
class Catalogue:
    """All strategies and gradient scores, each with one line and what it needs."""

    strategies: dict[str, tuple[str, tuple[str, ...]]]
    scores: dict[str, tuple[str, tuple[str, ...]]]

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {
            kind: {
                name: {"summary": line, "needs": needs} for name, (line, needs) in entries.items()
            }
            for kind, entries in vars(self).items()
        }

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = []
        for kind, entries in vars(self).items():
            lines += [f"{kind}:"]
            for name, (line, needs) in entries.items():
                need = f" (needs {', '.join(needs)})" if needs else ""
                lines.append(f"  {name:28}{line}{need}")
        return "\n".join(
            [*lines, "", "What they keep of a run: gradsift strategies RUN --budget 50%"]
        )


def catalogue() -> Catalogue:
    """Return what can be chosen: strategies and gradient scores."""
    return Catalogue(
        *(
            {name: (entry.summary, tuple(need.value for need in entry.needs))
             for name, entry in entries.items()}
            for entries in (STRATEGIES, SCORES)
        )
    )  # fmt: skip


@takes(SelectionConfig, RowsConfig, without=("strategy",))
def strategies(
    run: str | Path | GradientStore | Run,
    *,
    budget: str | int | float,
    names: str | Sequence[str] = (),
    **settings: Any,
) -> StrategiesResult:
    """Compare what several strategies would keep of a captured run; nothing is written.

    Args:
        run: A run folder, or its store.
        budget: As for `select`, but not "auto".
        names: Strategies; empty for all that can be had from what is there.
        **settings: As for `select`.

    Returns:
        Criteria, mixes and overlaps.

    Raises:
        GradsiftError: If a setting does not fit, or a strategy was named that cannot be had.
    """
    config, rows = split_settings(settings, SelectionConfig, RowsConfig)
    parsed = parse_budget(budget)
    run, names = Run.of(run, data=rows.data), (names,) if isinstance(names, str) else names
    if parsed.kind == "auto":
        raise GradsiftError("budget auto differs from strategy to strategy: give a number.")
    configs = {name: config.model_copy(update={"strategy": name}) for name in names or STRATEGIES}
    needs = {name: needs_of(config) for name, config in configs.items()}  # Refuses unknown names.
    left_out = {} if names else _not_to_be_had(run, config)
    chosen = [name for name in STRATEGIES if name in configs and name not in left_out]
    needed = set().union(*(needs[name] for name in chosen))
    pool, context = run.candidates(needed), run.context(config, needed)
    signal = make_signal(pool, config)
    subsets, outcomes, near = [], [], config.similarity_threshold
    for name in chosen:
        rows_S = choose_rows(pool, parsed, configs[name], context)
        subsets.append(rows_S)
        subset = audit_of(pool, rows_S, signal.score_N, context.cluster_N, context.neighbours, near)
        criteria = criteria_of(rows_S, signal.density.log_N, context.neighbours, near)
        outcomes.append(Outcome(name, criteria, subset))
    overlap_KK = np.array([[overlap(a, b) for b in subsets] for a in subsets])
    n_left = n_open(pool, parsed, config, context)
    return StrategiesResult(
        str(run.folder), str(parsed), n_left, tuple(outcomes), overlap_KK, left_out
    )


def _not_to_be_had(run: Run, config: SelectionConfig) -> dict[str, str]:
    missing = {}
    if config.anchor is None:
        missing[Need.ANCHOR] = "needs `anchor`, a captured run of general rows"
    if config.target is None:
        missing[Need.TARGET] = "needs `target`, a captured run of target rows"
    if not run.has_reference_losses:
        missing[Need.REFERENCE_LOSSES] = f"needs: gradsift reference-losses {run.folder}"
    if run.pool_table["source"].null_count == run.pool_table.num_rows:
        missing[Need.SOURCES] = "needs rows that say where they come from: `source_column`"
    left_out, n_rows = {}, len(run.store.instance_ids)
    for name, strategy in STRATEGIES.items():
        why = next((missing[need] for need in strategy.needs if need in missing), None)
        if why is None and strategy.slow_above is not None and n_rows > strategy.slow_above:
            why = f"slow above {strategy.slow_above} rows: name it to have it"
        if why is not None:
            left_out[name] = why
    return left_out
