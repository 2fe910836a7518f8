"""How much of a subset depends on choices that could have been made otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gradsift.commands.select import Files
from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.audit import overlap
from gradsift.selection.constraints import Budget
from gradsift.selection.scores import SCORES
from gradsift.selection.selector import choose_rows
from gradsift.stages.candidates import candidates_of, context_of, has_losses
from gradsift.store.reader import GradientStore, read_store
from gradsift.store.tables import read_pool_table


@dataclass(frozen=True)
class Stability:
    """Overlaps (Jaccard) of a selection with what other choices would have made of it.

    Attributes:
        run: The run folder.
        budget: As it was given.
        by_chance: Overlap of two random subsets of that size, expected.
        overlaps: What was changed → the overlap with the selection as it was asked for.
    """

    run: str
    budget: str
    by_chance: float
    overlaps: dict[str, float]

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return vars(self)

    def text(self) -> str:
        """Return what a person wants to know."""
        lines = [
            f"{self.run}, budget {self.budget}: overlap of the subset with what it would be "
            "otherwise",
            "(rows in both / rows in either; 1 is the same subset, "
            f"{self.by_chance:.2f} is what chance makes)",
            "",
        ]
        return "\n".join(
            lines + [f"{what:44}{value:6.2f}" for what, value in self.overlaps.items()]
        )


def measure_stability(
    store: GradientStore,
    budget: Budget,
    settings: SelectionConfig,
    files: Files,
    others: Sequence[str | Path] = (),
) -> Stability:
    """Select again with another side, layer, seed or capture, and compare the subsets.

    Args:
        store: A complete gradient store.
        budget: How much to select; not "auto".
        settings: As asked for.
        files: Reference runs and lists of ids.
        others: Run folders with the same rows, such as captures with other seeds.

    Returns:
        The overlaps.

    Raises:
        ValueError: If another run has other rows.
    """
    if budget.kind == "auto":
        raise GradsiftError("budget auto differs from choice to choice: give a number.")
    first = _ids(store, budget, settings, files)
    overlaps = {}
    for what, change in _changes(store, settings):
        overlaps[what] = overlap(
            first, _ids(store, budget, settings.model_copy(update=change), files)
        )
    for folder in others:
        other = read_store(Path(folder).resolve())
        if set(other.instance_ids) != set(store.instance_ids):
            shared = len(set(other.instance_ids) & set(store.instance_ids))
            raise GradsiftError(
                f"{folder}: has other rows ({shared} of {len(store.instance_ids)} are shared). "
                "Stability compares captures of the same rows."
            )
        overlaps[f"run {folder}"] = overlap(first, _ids(other, budget, settings, files))
    share = len(first) / int(store.finite.sum())
    return Stability(str(store.folder), str(budget), share / (2 - share), overlaps)


def _changes(
    store: GradientStore, settings: SelectionConfig
) -> list[tuple[str, dict[str, object]]]:
    # Sides that need the further pass only where it was made.
    sides = [side for side in SCORES if side != "prompt-gain" or has_losses(store)]
    changes: list[tuple[str, dict[str, object]]] = [
        (f"side {side}", {"score": side}) for side in sides if side != settings.score
    ]
    if len(store.layers) > 1:
        changes += [(f"layer {layer} alone", {"layers": (layer,)}) for layer in store.layers]
    detrended = () if settings.detrend else ("response_length", "prompt_length", "step")
    changes.append(("detrended" if detrended else "not detrended", {"detrend": detrended}))
    changes += [(f"{name} 0", {name: 0.0}) for name in ("alpha", "beta", "gamma")]
    changes.append((f"seed {settings.seed + 1}", {"seed": settings.seed + 1}))
    return changes


def _ids(
    store: GradientStore, budget: Budget, settings: SelectionConfig, files: Files
) -> list[str]:
    pool = candidates_of(store, read_pool_table(store.folder), settings.needs)
    context = context_of(store, settings.needs, **vars(files))
    return [pool.ids[row] for row in choose_rows(pool, budget, settings, context)]
