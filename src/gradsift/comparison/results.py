"""Scores of all arms → levels, forgetting, differences and verdicts. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradsift.comparison.arms import BASE, FULL, FULL_STEPS, RANDOM, Arm
from gradsift.errors import GradsiftError
from gradsift.evaluation.conclusions import Question, Verdict, decide
from gradsift.evaluation.intervals import (
    Estimate,
    estimate_difference,
    pooled_seed_spread,
)
from gradsift.evaluation.metrics import (
    DECIDING,
    GENERAL,
    LEARNING,
    METRICS,
    Replicated,
    replicate,
    resampling_weights,
)

N_RESAMPLINGS = 1000
# Strategies that look at no gradient, so that no preliminary epoch belongs to their cost.
WITHOUT_CAPTURE = (RANDOM, "longest")
# Items of a set from which on a bootstrap's interval is worth its name.
ENOUGH_ITEMS = 20


@dataclass(frozen=True)
class Trained:
    """One trained and examined model.

    Attributes:
        arm: Of which arm.
        seed: Of its training.
        n_rows: Trained on.
        training: Steps, tokens, seconds; None for base.
        scores: From `evaluate`.
    """

    arm: Arm
    seed: int
    n_rows: int
    training: Mapping[str, Any] | None
    scores: Mapping[str, Any]


class Scoreboard:
    """All arms, each metric on the items and on the same resamplings of them.

    Attributes:
        arms: With their models, in the order of the comparison.
    """

    def __init__(self, models: Sequence[Trained], seed: int = 0):
        """Resample.

        Args:
            models: All that is compared; at least one.
            seed: Of the resampling.

        Raises:
            ValueError: If they were not asked the same.
        """
        self.arms: dict[str, list[Trained]] = {}
        for model in models:
            self.arms.setdefault(model.arm.label, []).append(model)
        self._strata = {id(model): _strata(model.scores) for model in models}
        sizes = _same_sizes([self._strata[id(model)] for model in models])
        self._weights = resampling_weights(sizes, N_RESAMPLINGS, seed)
        self._replicated: dict[tuple[int, str], Replicated] = {}
        self.sizes = sizes

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that were measured."""
        first = next(iter(self._strata.values()))
        return [name for name in METRICS if first[name]]

    def runs(self, label: str, metric: str) -> list[Replicated]:
        """Return a metric of each model of an arm."""
        found = []
        for model in self.arms[label]:
            key = (id(model), metric)
            if key not in self._replicated:
                strata = self._strata[id(model)][metric]
                self._replicated[key] = replicate(METRICS[metric], strata, self._weights)
            found.append(self._replicated[key])
        return found

    def level(self, label: str, metric: str) -> Estimate:
        """Return a metric of an arm, with its interval."""
        return self._estimate(label, None, metric)

    def difference(self, label: str, rival: str, metric: str) -> Estimate:
        """Return a metric of an arm less that of another, with its interval."""
        return self._estimate(label, rival, metric)

    def parts(self, label: str, metric: str) -> dict[str, float]:
        """Return a metric by task or text, as the mean over an arm's models."""
        strata = [self._strata[id(model)][metric] for model in self.arms[label]]
        return {
            name.partition(":")[2]: float(
                np.mean([_value(metric, {name: one[name]}) for one in strata])
            )
            for name in strata[0]
        }

    def by_source(self, label: str) -> dict[str, dict[str, Any]]:
        """Return the domain metrics of each source of held-out rows, as means over models."""
        found: dict[str, dict[str, Any]] = {}
        for metric in self.metrics:
            if METRICS[metric].kind != LEARNING:
                continue
            for source, runs in self._of_sources(label, metric).items():
                entry = found.setdefault(source, {"n": runs[1]})
                entry[metric] = runs[0]
        return found

    def _of_sources(self, label: str, metric: str) -> dict[str, tuple[float, int]]:
        found: dict[str, tuple[list[float], int]] = {}
        for model in self.arms[label]:
            part = "rows" if metric == "loss" else "answers"
            sources = np.array(model.scores[part]["source"])
            strata = self._strata[id(model)][metric][part]
            for source in sorted(set(sources.tolist())):
                items = strata[sources == source]
                found.setdefault(source, ([], len(items)))[0].append(_value(metric, {part: items}))
        return {source: (float(np.mean(values)), n) for source, (values, n) in found.items()}

    def _estimate(self, label: str, rival: str | None, metric: str) -> Estimate:
        spread = pooled_seed_spread([self.runs(name, metric) for name in self.arms])
        strata = self._strata[id(self.arms[label][0])][metric]
        return estimate_difference(
            self.runs(label, metric),
            [] if rival is None else self.runs(rival, metric),
            n_items=sum(len(items) for items in strata.values()),
            smallest_set=min(len(items) for items in strata.values()),
            seed_spread=spread,
            trained=(self._is_trained(label), rival is not None and self._is_trained(rival)),
        )

    def _is_trained(self, label: str) -> bool:
        return self.arms[label][0].arm.is_trained


def questions_of(board: Scoreboard) -> list[Question]:
    """Ask of each selected subset whether it beat full, random, and full at equal steps.

    Args:
        board: All arms.

    Returns:
        The questions whose rival is there.
    """
    arms = {label: models[0].arm for label, models in board.arms.items()}
    found = []
    for label, arm in arms.items():
        if not arm.is_strategy or arm.name == RANDOM:
            continue
        for name in (FULL, RANDOM, FULL_STEPS):
            rival = next(
                (
                    other
                    for other, theirs in arms.items()
                    if theirs.name == name and _is_as_large(board, label, arm, other, theirs)
                ),
                None,
            )
            if rival is not None:
                found += [_question(board, kind, label, rival, name) for kind in DECIDING]
    return [question for question in found if question.deciding]


def caveats_of(board: Scoreboard) -> list[str]:
    """Say what a reader of the verdicts ought to know.

    Args:
        board: All arms.

    Returns:
        Sentences.
    """
    few = [f"{size} of {name}" for name, size in board.sizes.items() if size < ENOUGH_ITEMS]
    found = []
    if few:
        found.append(f"few items ({', '.join(few)}): intervals from so few are rough")
    arms = {label: models[0].arm for label, models in board.arms.items()}
    for name, what in ((RANDOM, "is as large"), (FULL_STEPS, "has as many steps")):
        rivals = [label for label, arm in arms.items() if arm.name == name]
        for label, arm in arms.items():
            if not arm.is_strategy or arm.name == RANDOM or not rivals:
                continue
            if not any(_is_as_large(board, label, arm, one, arms[one]) for one in rivals):
                found.append(f"{label}: no {name} arm {what}, so it is not compared with one")
    return found


def verdicts_of(board: Scoreboard) -> list[Verdict]:
    """Answer all questions about a scoreboard.

    Args:
        board: All arms.

    Returns:
        The verdicts.
    """
    return decide(questions_of(board))


def forgetting_of(board: Scoreboard, label: str) -> dict[str, Estimate]:
    """Estimate what an arm lost of the general metrics, as base minus arm: above 0 is forgotten.

    Args:
        board: With a base arm.
        label: Of the arm.

    Returns:
        By metric; a loss that rose counts as forgotten, too.
    """
    found = {}
    for metric in board.metrics:
        if METRICS[metric].kind == GENERAL and BASE in board.arms:
            pair = (BASE, label) if METRICS[metric].higher_is_better else (label, BASE)
            found[metric] = board.difference(*pair, metric)
    return found


def _is_as_large(board: Scoreboard, label: str, arm: Arm, other: str, theirs: Arm) -> bool:
    mine, its = board.arms[label][0], board.arms[other][0]
    if theirs.name == FULL_STEPS:
        # For a budget of tokens it has as many steps as a random subset, which may be others.
        return _n_steps(mine) == _n_steps(its)
    # The same size may be said in other words: 50 % of 24 rows, or 12.
    return theirs.budget in (None, arm.budget) or mine.n_rows == its.n_rows


def _n_steps(model: Trained) -> int | None:
    return None if model.training is None else model.training["n_steps"]


def _question(board: Scoreboard, kind: str, label: str, rival: str, family: str) -> Question:
    metrics = [name for name in board.metrics if METRICS[name].kind == kind]
    differences = {name: board.difference(label, rival, name) for name in metrics}
    forgot = {}
    if kind == GENERAL and BASE in board.arms:
        forgot = {
            key: {name: board.difference(one, BASE, name) for name in metrics}
            for key, one in (("arm_forgot", label), ("rival_forgot", rival))
        }
    return Question(kind, label, rival, family, differences, **forgot)


def _strata(scores: Mapping[str, Any]) -> dict[str, dict[str, np.ndarray]]:
    answers = scores.get("answers")
    found: dict[str, dict[str, np.ndarray]] = {"loss": {"rows": _column(scores["rows"]["loss"])}}
    for name in ("meteor", "rouge_l"):
        found[name] = {} if answers is None else {"answers": _column(answers[name])}
    for name in ("bleu", "chrf"):
        found[name] = {} if answers is None else {"answers": np.array(answers[name], float)}
    found["accuracy"] = {
        f"task:{name}": _column(task["scores"]) for name, task in sorted(scores["tasks"].items())
    }
    found["text_loss"] = {
        f"text:{name}": _column(text["loss"]) for name, text in sorted(scores["texts"].items())
    }
    return found


def _column(values: Sequence[float]) -> np.ndarray:
    return np.array(values, float)[:, None]


def _same_sizes(all_strata: Sequence[dict[str, dict[str, np.ndarray]]]) -> dict[str, int]:
    sizes = [
        {name: len(items) for strata in one.values() for name, items in strata.items()}
        for one in all_strata
    ]
    for other in sizes[1:]:
        if other != sizes[0]:
            raise GradsiftError(f"arms were asked different things: {sizes[0]} and {other} items.")
    return sizes[0]


def _value(metric: str, strata: Mapping[str, np.ndarray]) -> float:
    ones = {name: np.ones((2, len(items))) for name, items in strata.items()}
    return replicate(METRICS[metric], strata, ones).value
