"""How much of a subset depends on choices that could have been made otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsift.config import COVARIATES, RowsConfig, SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.schema import split_settings, takes
from gradsift.selection.audit import overlap
from gradsift.selection.candidates import Context, Need
from gradsift.selection.conditions import n_open
from gradsift.selection.constraints import Budget, parse_budget
from gradsift.selection.scores import SCORES
from gradsift.selection.selector import choose_rows
from gradsift.selection.strategies.catalogue import STRATEGIES, needs_of, uses_score
from gradsift.store.reader import GradientStore
from gradsift.wording import in_line, joined

# Of the way from chance to the same subset: from here on it holds, up to here it is another one.
_HOLDS, _BREAKS = 0.75, 0.33


@dataclass(frozen=True)
class Stability:
    """Overlaps (Jaccard) of a selection with what other choices would have made of it.

    Attributes:
        run: The run folder.
        budget: As it was given.
        n_rows: Rows that can be selected.
        n_open: Those of them that gate, quotas and lists leave.
        by_chance: Overlap of two random subsets of that size from those, expected.
        overlaps: What was changed → the overlap with the selection as it was asked for.
    """

    run: str
    budget: str
    n_rows: int
    n_open: int
    by_chance: float
    overlaps: dict[str, float]

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        least, most = min(self.overlaps.values()), max(self.overlaps.values())
        return in_line(
            f"Stability({len(self.overlaps)} overlaps from {least:.2f} to {most:.2f}, "
            f"{self.by_chance:.2f} by chance, budget {self.budget}, of {self.run})"
        )

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return {**vars(self), "sentence": self.sentence()}

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [
            f"{self.run}, budget {self.budget}: overlap of the subset with what it would be "
            "otherwise",
            "(rows in both / rows in either; 1 is the same subset, "
            f"{self.by_chance:.2f} is what chance makes)",
            *open_line(self.n_rows, self.n_open),
            "",
        ]
        lines += [f"{what:44}{value:6.2f}" for what, value in self.overlaps.items()]
        return joined([*lines, "", self.sentence()])

    def sentence(self) -> str:
        """Say what the overlaps mean: what the subset hangs on, and what it does not."""
        # From chance, 0, to the same subset, 1.
        room = 1 - self.by_chance
        beyond = {
            what: (value - self.by_chance) / room if room > 0 else 1.0
            for what, value in self.overlaps.items()
        }
        holds = [what for what, value in beyond.items() if value >= _HOLDS]
        breaks = [what for what, value in beyond.items() if value <= _BREAKS]
        if not breaks:
            least = min(beyond, key=beyond.__getitem__)
            return (
                "In short: most of the subset stays whatever of these is changed (least with "
                f"{least}): it hangs on none of them alone."
            )
        kept = f", and with {_any_of(holds)} nearly the same" if holds else ""
        return (
            f"In short: with {_any_of(breaks)} the subset is mostly another one{kept}. What it "
            "hangs on is yours to decide: compare both by training if you cannot."
        )


def _any_of(names: Sequence[str]) -> str:
    """Return names of changes in one phrase; other scores are one change."""
    scores = [name.removeprefix("score ") for name in names if name.startswith("score ")]
    others = [name for name in names if not name.startswith("score ")]
    *first, last = [*([f"another score ({', '.join(scores)})"] if scores else []), *others]
    return f"{', '.join(first)}{' or ' * bool(first)}{last}"


@takes(SelectionConfig, RowsConfig)
def stability(
    run: str | Path | GradientStore | Run,
    *,
    budget: str | int | float,
    others: str | Path | Sequence[str | Path] = (),
    **settings: Any,
) -> Stability:
    """Say how much of a subset depends on score, layer, coefficient, seed or capture.

    Args:
        run: A run folder, or its store.
        budget: As for `select`, but not "auto".
        others: Run folders with the same rows, such as captures with other seeds.
        **settings: As for `select`.

    Returns:
        The overlap with each other choice.

    Raises:
        GradsiftError: If a setting does not fit, or another run has other rows.
    """
    config, rows = split_settings(settings, SelectionConfig, RowsConfig)
    parsed = parse_budget(budget)
    run = Run.of(run, data=rows.data)
    if parsed.kind == "auto":
        raise GradsiftError("budget auto differs from choice to choice: give a number.")
    context = run.context(config)
    first, overlaps = _chosen_ids(run, parsed, config, context), {}
    for what, change in _changes(run, config):
        other = config.model_copy(update=change)
        overlaps[what] = overlap(first, _chosen_ids(run, parsed, other, context))
    for folder in [others] if isinstance(others, str | Path) else others:
        other_run = Run(folder, data=rows.data)
        other_ids, ids = set(other_run.store.instance_ids), set(run.store.instance_ids)
        if other_ids != ids:
            raise GradsiftError(
                f"{folder}: has other rows ({len(other_ids & ids)} of {len(ids)} are shared). "
                "Stability compares captures of the same rows."
            )
        chosen_ids = _chosen_ids(other_run, parsed, config, other_run.context(config))
        overlaps[f"run {folder}"] = overlap(first, chosen_ids)
    pool = run.candidates(needs_of(config))
    n_left = n_open(pool, parsed, config, context)
    share = len(first) / n_left
    by_chance = share / (2 - share)
    return Stability(str(run.folder), str(parsed), len(pool), n_left, by_chance, overlaps)


def open_line(n_rows: int, n_left: int) -> list[str]:
    """Say how many rows may be taken, where not all may."""
    return [f"gate, quotas and lists leave {n_left} of {n_rows} rows"] if n_left < n_rows else []


def _changes(run: Run, config: SelectionConfig) -> list[tuple[str, dict[str, object]]]:
    """Return what could have been chosen otherwise, as far as it matters to the strategy."""
    changes: list[tuple[str, dict[str, object]]] = []
    if uses_score(config):
        # Nothing is computed for it, nor are the sketches of a large pool read.
        there = needs_of(config) | ({Need.REFERENCE_LOSSES} if run.has_reference_losses else set())
        changes += [
            (f"score {name}", {"score": name})
            for name, score in SCORES.items()
            if name != config.score and set(score.needs) <= there
        ]
        layers = run.store.layers
        if len(layers) > 1:
            changes += [(f"layer {layer} alone", {"layers": (layer,)}) for layer in layers]
        covariates = () if config.detrend else COVARIATES
        changes.append(("detrended" if covariates else "not detrended", {"detrend": covariates}))
    if STRATEGIES[config.strategy].uses_coefficients:
        changes += [(f"{name} 0", {name: 0.0}) for name in ("alpha", "beta", "gamma")]
    changes.append((f"seed {config.seed + 1}", {"seed": config.seed + 1}))
    return changes


def _chosen_ids(run: Run, budget: Budget, config: SelectionConfig, context: Context) -> list[str]:
    pool = run.candidates(needs_of(config))
    return [pool.ids[row] for row in choose_rows(pool, budget, config, context)]
