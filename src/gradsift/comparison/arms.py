"""The arms of a comparison: what is trained on which rows, how often, and what it is called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from gradsift.commands.select import Files
from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.selection.constraints import Budget, parse_budget
from gradsift.selection.selector import choose_rows
from gradsift.selection.strategies.base import Need
from gradsift.selection.strategies.catalogue import STRATEGIES
from gradsift.stages.candidates import candidates_of, context_of
from gradsift.store.reader import GradientStore
from gradsift.store.tables import read_pool_table

BASE = "base"
FULL = "full"
FULL_STEPS = "full-equal-steps"
RANDOM = "random"

_HOW = (
    "expected base, full, full-equal-steps or a strategy that `gradsift strategies` lists, then "
    "perhaps @BUDGET, then perhaps :key=value for settings of the selection or seeds, as in "
    "grads@50%:alpha=0:seeds=1"
)


# SelectionConfig of a selection that an arm says in another way.
_NOT_SETTINGS = {"strategy": "the name of the arm", "budget": "@BUDGET"}


@dataclass(frozen=True)
class Arm:
    """One line of a comparison.

    Attributes:
        text: As the user wrote it, which names it.
        name: base, full, full-equal-steps, or a strategy.
        budget: Of its rows (for full-equal-steps: of its steps); None for base and full.
        settings: SelectionConfig of its selection that differ from the others'.
        n_seeds: Trainings.
    """

    text: str
    name: str
    budget: Budget | None
    settings: dict[str, Any] = field(default_factory=dict)
    n_seeds: int = 1

    @property
    def label(self) -> str:
        """Its name in tables."""
        name = ":".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])
        return name if self.budget is None else f"{name} {self.budget}"

    @property
    def is_trained(self) -> bool:
        """Whether there is anything to train."""
        return self.name != BASE

    @property
    def is_strategy(self) -> bool:
        """Whether its rows are selected."""
        return self.name in STRATEGIES


def parse_arm(text: str, budget: str | int | float | None) -> Arm:
    """Read the one arm that is trained once.

    Args:
        text: As for `parse_arms`.
        budget: Of the arm, unless it has none, or names one.

    Returns:
        The arm.

    Raises:
        ValueError: If it is not known, or there is nothing to train.
    """
    text = text.strip()
    head, *pairs = text.split(":")
    if any(pair.startswith("seeds=") for pair in pairs):
        raise GradsiftError(f"arm {text!r}: it is trained once; give `seed` for another training.")
    if budget is not None and (head in (BASE, FULL) or "@" in head):
        has = "names its budget" if "@" in head else "has no budget"
        raise GradsiftError(f"arm {text!r}: it {has}, so leave out `budget` {budget}.")
    (arm,) = _parse(text, [] if budget is None else [budget], 1, "`budget`")
    if not arm.is_trained:
        raise GradsiftError(f"arm {text!r}: there is nothing to train.")
    return arm


def parse_arms(
    texts: Sequence[str], budgets: Sequence[str | int | float], n_seeds: int
) -> list[Arm]:
    """Read arms as the user writes them; each comes once for each budget, where it has one.

    Args:
        texts: Such as "full" or "grads:alpha=0" or "loss-low@50%:seeds=1".
        budgets: Of the arms that name none.
        n_seeds: Trainings of the arms that say nothing.

    Returns:
        The arms, in order, each once.

    Raises:
        ValueError: For an arm, a setting or a budget that is not known.
    """
    if n_seeds < 1:
        raise GradsiftError(f"`seeds` is {n_seeds}, expected at least 1.")
    if not texts:
        raise GradsiftError(f"`arms` names none; {_HOW}.")
    arms: dict[str, Arm] = {}
    for text in texts:
        for arm in _parse(text.strip(), budgets, n_seeds, "`budgets`"):
            if arms.setdefault(arm.label, arm).n_seeds != arm.n_seeds:
                raise GradsiftError(f"arm {text!r}: {arm.label} is there twice, with other seeds.")
    return list(arms.values())


def _parse(text: str, budgets: Sequence[str | int | float], n_seeds: int, option: str) -> list[Arm]:
    head, *pairs = text.split(":")
    name, at, own_budget = head.partition("@")
    if name not in (BASE, FULL, FULL_STEPS, *STRATEGIES):
        raise GradsiftError(f"arm {text!r}: {_HOW}.")
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise GradsiftError(f"arm {text!r}: {pair!r} is no key=value; {_HOW}.")
        if key in _NOT_SETTINGS:
            raise GradsiftError(f"arm {text!r}: {key} is said by {_NOT_SETTINGS[key]}.")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise GradsiftError(f"arm {text!r}: {value!r} is no value in YAML.") from None
    has_seeds = "seeds" in settings
    seeds = settings.pop("seeds", n_seeds)
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise GradsiftError(f"arm {text!r}: seeds is {seeds!r}, expected a number from 1.")
    if settings and name not in STRATEGIES:
        raise GradsiftError(
            f"arm {text!r}: {name} selects nothing, so it has no {next(iter(settings))}."
        )
    if name in (BASE, FULL):
        if at:
            raise GradsiftError(f"arm {text!r}: {name} has no budget.")
        if name == BASE and has_seeds:
            raise GradsiftError(f"arm {text!r}: {name} is not trained, so it has no seeds.")
        return [Arm(text, name, None, {}, 1 if name == BASE else seeds)]
    wanted = [own_budget] if at else budgets
    if not wanted:
        raise GradsiftError(
            f"arm {text!r}: no budget is given: add {option} 50% or write {name}@50%."
        )
    parsed = [parse_budget(budget) for budget in wanted]
    if any(budget.kind == "auto" for budget in parsed):
        raise GradsiftError(f"arm {text!r}: budget auto differs from arm to arm: give a number.")
    return [Arm(text, name, budget, settings, seeds) for budget in parsed]


def rows_of(
    store: GradientStore, base: SelectionConfig, files: Files, arms: Sequence[Arm]
) -> Callable[[Arm, int], list[str]]:
    """Prepare to tell which rows an arm is trained on.

    Args:
        store: A complete gradient store.
        base: SelectionConfig of the selection that hold unless an arm has its own.
        files: Reference runs and lists of ids.
        arms: All that will be asked for.

    Returns:
        From an arm and a seed to instance ids, in the order of the pool; for full-equal-steps those
        of a random selection of its size, which says how many steps it has.

    Raises:
        ValueError: If a setting does not fit, or something that an arm needs is not there.
    """
    settings = {arm.label: _settings(base, arm) for arm in arms if arm.budget is not None}
    needs = needs_of(base, arms)
    pool = candidates_of(store, read_pool_table(store.folder), needs)
    context = context_of(store, needs, **vars(files))

    def rows(arm: Arm, seed: int) -> list[str]:
        if arm.budget is None:
            return list(store.instance_ids)
        own = settings[arm.label]
        chosen = own.model_copy(update={"seed": own.seed + seed})
        return [
            pool.ids[i] for i in sorted(choose_rows(pool, arm.budget, chosen, context).tolist())
        ]

    for arm in arms:
        # What does not fit is found out before anything is trained.
        rows(arm, 0)
    return rows


def needs_of(base: SelectionConfig, arms: Sequence[Arm]) -> set[Need]:
    """Return what the selections of all arms need.

    Args:
        base: SelectionConfig that hold unless an arm has its own.
        arms: All of them.

    Returns:
        Their needs.

    Raises:
        ValueError: If a setting does not fit.
    """
    selecting = [_settings(base, arm) for arm in arms if arm.budget is not None]
    return {need for settings in selecting for need in settings.needs}


def _settings(base: SelectionConfig, arm: Arm) -> SelectionConfig:
    strategy = arm.name if arm.is_strategy else RANDOM
    values = {**base.model_dump(), **arm.settings, "strategy": strategy}
    try:
        return SelectionConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "settings"
        raise GradsiftError(f"arm {arm.text!r}: {key}: {first['msg']}") from None
