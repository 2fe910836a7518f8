"""The arms of a comparison: what is trained on which rows, how often, and what it is called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gradsift.config import SelectionConfig, with_preset
from gradsift.errors import GradsiftError
from gradsift.replay.shares import percent
from gradsift.run_folder import Run
from gradsift.schema import Group, nearest, parse_pair, require_known, split_settings, validated
from gradsift.selection.candidates import Need
from gradsift.selection.conditions import gate_shortage
from gradsift.selection.constraints import Budget, parse_budget
from gradsift.selection.selector import choose_rows
from gradsift.selection.strategies.catalogue import STRATEGIES, needs_of, require_known_names

logger = logging.getLogger(__name__)

# Why there is no setting `strategy` for all arms.
STRATEGY_OF_AN_ARM = "said by the names of the arms"
BASE = "base"
FULL = "full"
FULL_STEPS = "full-equal-steps"
RANDOM = "random"
# Strategies that draw: every training of theirs has other rows.
DRAWING = (RANDOM, "random-by-cluster", "random-by-source", "k-center", "k-means")
# Arms whose rows no strategy selects.
NOT_SELECTED = (BASE, FULL, FULL_STEPS)

_SYNTAX = (
    "expected base, full, full-equal-steps or a strategy that `gradsift strategies` lists, then "
    "perhaps @BUDGET, then perhaps :key=value for settings of the selection, seeds or replay, as "
    "in grads@50%:alpha=0:seeds=1"
)
# What an arm may say that is no setting of its selection.
_OF_THE_TRAINING = ("seeds", "replay")
# Settings of a selection that an arm says in another way.
_SAID_ELSEWHERE = {"strategy": "the name of the arm", "budget": "@BUDGET"}


@dataclass(frozen=True)
class Arm:
    """One line of a comparison.

    Attributes:
        text: As the user wrote it.
        name: base, full, full-equal-steps, or a strategy.
        budget: Of its rows (for full-equal-steps: of its steps); None for base and full.
        settings: Of its selection, where they differ from the others'.
        n_seeds: Trainings.
        replay_share: Of general rows in what it is trained on; 0 for none.
    """

    text: str
    name: str
    budget: Budget | None
    settings: dict[str, Any] = field(default_factory=dict)
    n_seeds: int = 1
    replay_share: float = 0.0

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self._named("" if self.budget is None else f" {self.budget}")

    @property
    def family(self) -> str:
        """Its name without its budget."""
        return self._named("")

    def _named(self, budget: str) -> str:
        name = ":".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])
        return (
            name + budget + (f" + replay {percent(self.replay_share)}" if self.replay_share else "")
        )

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train."""
        return self.name != BASE

    @property
    def is_strategy(self) -> bool:
        """Whether its rows are selected."""
        return self.name in STRATEGIES

    @property
    def needs_capture(self) -> bool:
        """Whether a preliminary epoch belongs to its cost."""
        return self.is_strategy and STRATEGIES[self.name].needs_capture

    def selection(self, base: SelectionConfig) -> SelectionConfig:
        """Lay its own settings over those of all arms; full-equal-steps has a random subset's."""
        strategy = self.name if self.is_strategy else RANDOM
        # A preset of its own wins over single settings of all arms.
        values = {**base.model_dump(), **with_preset(self.settings), "strategy": strategy}
        return validated(SelectionConfig, values, f"arm {self.text!r}")


def arm_settings(values: Mapping[str, Any], *groups: type[Group]) -> list[Any]:
    """Check settings that hold for all arms; returns one model for each group."""
    models = split_settings(values, *groups)
    for model in models:
        if isinstance(model, SelectionConfig):
            require_known_names(model)
    return models


def parse_arm(text: str, budget: str | int | float | None, replay_share: float = 0.0) -> Arm:
    """Read the one arm that is trained once; `replay_share` is its own if it says none."""
    text = text.strip()
    head, *pairs = text.split(":")
    if any(pair.startswith("seeds=") for pair in pairs):
        raise GradsiftError(f"arm {text!r}: it is trained once; give `seed` for another training.")
    if budget is not None and (head in (BASE, FULL) or "@" in head):
        has = "names its budget" if "@" in head else "has no budget"
        raise GradsiftError(f"arm {text!r}: it {has}, so leave out `budget` {budget}.")
    (arm,) = _parse(text, [] if budget is None else [budget], 1, replay_share, "`budget`")
    if not arm.is_trained:
        raise GradsiftError(f"arm {text!r}: there is nothing to train.")
    return arm


def parse_arms(
    texts: Sequence[str],
    budgets: Sequence[str | int | float],
    n_seeds: int,
    replay_share: float = 0.0,
) -> list[Arm]:
    """Read arms such as full, grads:alpha=0 or loss-low@50%:seeds=1, each once.

    Those that name no budget come once for each of `budgets`; those that name no seeds are trained
    `n_seeds` times; those that name no share of replay have `replay_share`.
    """
    if n_seeds < 1:
        raise GradsiftError(f"`seeds` is {n_seeds}, expected at least 1.")
    if not texts:
        raise GradsiftError(f"`arms` names none; {_SYNTAX}.")
    arms: dict[str, Arm] = {}
    for text in texts:
        for arm in _parse(text.strip(), budgets, n_seeds, replay_share, "`budgets`"):
            if arms.setdefault(arm.label, arm).n_seeds != arm.n_seeds:
                raise GradsiftError(f"arm {text!r}: {arm.label} is there twice, with other seeds.")
    return list(arms.values())


def _parse(
    text: str, budgets: Sequence[str | int | float], n_seeds: int, share: float, setting: str
) -> list[Arm]:
    where = f"arm {text!r}"
    head, *pairs = text.split(":")
    name, at, arm_budget = head.partition("@")
    if name not in (*NOT_SELECTED, *STRATEGIES):
        hint = nearest(name, (*NOT_SELECTED, *STRATEGIES), few=0)
        raise GradsiftError(f"{where}: {f'{hint}? ' * bool(hint)}{_SYNTAX}.")
    settings = _parse_settings(pairs, where)
    has_seeds, seeds = "seeds" in settings, settings.pop("seeds", n_seeds)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise GradsiftError(f"{where}: seeds is {seeds!r}, expected a number from 1.")
    has_replay, share = "replay" in settings, settings.pop("replay", share)
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
        raise GradsiftError(
            f"{where}: replay is {share!r}, expected a share such as 0.05, below 1; 0 is none."
        )
    if settings and name not in STRATEGIES:
        raise GradsiftError(
            f"{where}: {name} selects nothing, so it has no {next(iter(settings))}."
        )
    if name in (BASE, FULL):
        if at:
            raise GradsiftError(f"{where}: {name} has no budget.")
        if name == BASE and has_seeds:
            raise GradsiftError(f"{where}: {name} is not trained, so it has no seeds.")
        if name == BASE and has_replay:
            raise GradsiftError(f"{where}: {name} is not trained, so it has no replay.")
        if name == BASE:
            return [Arm(text, name, None)]
        return [Arm(text, name, None, {}, seeds, float(share))]
    if not at and not budgets:
        raise GradsiftError(f"{where}: no budget is given: add {setting} 50% or write {name}@50%.")
    parsed = [parse_budget(budget) for budget in ([arm_budget] if at else budgets)]
    if any(budget.kind == "auto" for budget in parsed):
        raise GradsiftError(f"{where}: budget auto differs from arm to arm: give a number.")
    return [Arm(text, name, budget, settings, seeds, float(share)) for budget in parsed]


def _parse_settings(pairs: Sequence[str], where: str) -> dict[str, Any]:
    settings = dict(parse_pair(pair, f"{where}:") for pair in pairs)
    for key in settings.keys() & _SAID_ELSEWHERE.keys():
        raise GradsiftError(f"{where}: {key} is said by {_SAID_ELSEWHERE[key]}.")
    require_known(settings, [*SelectionConfig.model_fields, *_OF_THE_TRAINING], where)
    selection = {key: value for key, value in settings.items() if key not in _OF_THE_TRAINING}
    require_known_names(validated(SelectionConfig, selection, where), f"{where}: ")
    return settings


def needs_of_arms(arms: Sequence[Arm], base: SelectionConfig) -> set[Need]:
    """Return what the selections of all arms need."""
    selecting = [arm.selection(base) for arm in arms if arm.budget is not None]
    return {need for selection in selecting for need in needs_of(selection)}


def rows_of(
    run: Run, arms: Sequence[Arm], base: SelectionConfig
) -> Callable[[Arm, int], Sequence[str]]:
    """Prepare to say which rows an arm is trained on, given the number of its training.

    The ids are in the order of the pool. For full-equal-steps they are those of a random selection
    of its size, which says how many steps it has. All arms select once here: what does not fit is
    found before anything is trained.
    """
    selections = {arm.label: arm.selection(base) for arm in arms if arm.budget is not None}
    contexts = {label: run.context(selection) for label, selection in selections.items()}
    pool = run.candidates(needs_of_arms(arms, base))

    def rows(arm: Arm, index: int) -> Sequence[str]:
        if arm.budget is None:
            return run.store.instance_ids
        selection = selections[arm.label]
        drawn = selection.model_copy(update={"seed": selection.seed + index})
        order_S = choose_rows(pool, arm.budget, drawn, contexts[arm.label])
        return [pool.ids[i] for i in sorted(order_S.tolist())]

    for arm in arms:
        ids = rows(arm, 0)
        if arm.budget is not None and selections[arm.label].gate:
            taken_S = np.flatnonzero(np.isin(pool.ids, ids))
            for line in gate_shortage(
                pool, arm.budget, selections[arm.label], contexts[arm.label], taken_S
            ):
                logger.warning(f"arm {arm.text!r}: {line}")
    return rows
