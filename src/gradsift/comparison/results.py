"""Scores of all arms → levels, forgetting, differences and verdicts. Needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from gradsift.comparison.arms import BASE, DRAWING, FULL, FULL_STEPS, RANDOM, Arm
from gradsift.errors import GradsiftError
from gradsift.evaluation.conclusions import Question
from gradsift.evaluation.intervals import (
    SIGNIFICANT,
    Estimate,
    Interval,
    Measured,
    estimate_difference,
    estimate_level,
    estimate_relative_change,
    pooled_spread,
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
from gradsift.evaluation.uncertainty import NO_SPREAD, Spread

# What the questions have in common that ask whether replay helps an arm.
REPLAY = "replay"
# By how much the steps of two arms with replay may differ that are called equal, or by one: a share
# of other rows is another number of rows.
STEPS_APART = 0.02
N_RESAMPLINGS = 1000
# Items of a set from which on a bootstrap's interval is worth its name.
ENOUGH_ITEMS = 20
# Trainings of an arm from which on it needs no others' to know its spread.
OWN_SPREAD = 5
# Degrees of freedom of a spread below which more arms are asked for theirs.
ENOUGH_DF = 2
# Below so many passes over its rows a training sees a draw of them.
WHOLE_PASS = 0.9
# Tokens that BLEU looks at together, at most.
LONGEST_NGRAM = 4
# METEOR's items, where other references are in other languages.
ENGLISH_ANSWERS = "answers in English"

ItemSetsByMetric = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class EvaluatedModel:
    """One trained and evaluated model.

    Attributes:
        arm: Of which arm.
        index: Number of its training, from 0.
        n_rows: Trained on.
        training: Steps, tokens, seconds; None for base.
        scores: Item by item, from an evaluation suite.
        replay: Share and rows of replay in what it was trained on; None without.
    """

    arm: Arm
    index: int
    n_rows: int
    training: Mapping[str, Any] | None
    scores: Mapping[str, Any]
    replay: Mapping[str, Any] | None = None

    @property
    def n_steps(self) -> int | None:
        """Optimizer updates."""
        return None if self.training is None else self.training["n_steps"]

    @property
    def draws_rows(self) -> bool:
        """Whether other rows are trained on under another seed."""
        seen = self.n_rows if self.training is None else self.training.get("n_instances")
        # As full-equal-steps does at a small budget, which ends within its first pass.
        is_part = seen is not None and seen < WHOLE_PASS * self.n_rows
        return self.arm.name in DRAWING or is_part


class Scoreboard:
    """All arms, each metric on the items and on the same resamplings of them.

    Attributes:
        models: By the label of their arm, in the order of the comparison.
        arms: By label.
        sizes: Number of items by set.
        signatures: How each metric of answers was computed.
    """

    def __init__(self, models: Sequence[EvaluatedModel]):
        """Resample; refuses models that were not asked the same."""
        self.models: dict[str, list[EvaluatedModel]] = {}
        for model in models:
            self.models.setdefault(model.arm.label, []).append(model)
        self.arms = {label: trained[0].arm for label, trained in self.models.items()}
        self.signatures = _same_signatures(models)
        self._items = {id(model): _items_of(model.scores) for model in models}
        self._item_sets = {key: _measured(items) for key, items in self._items.items()}
        self.sizes = _same_sizes(list(self._item_sets.values()))
        self._weights = resampling_weights(self.sizes, N_RESAMPLINGS, seed=0)
        self._replicated: dict[tuple[int, str], Replicated] = {}
        self._spreads: dict[tuple[tuple[str, ...], str], Spread | None] = {}

    @cached_property
    def metrics(self) -> list[str]:
        """The metrics that were measured."""
        item_sets = next(iter(self._item_sets.values()))
        return [name for name in METRICS if item_sets[name]]

    def measured(self, kind: str) -> list[str]:
        """Return the metrics of one kind that were measured."""
        return [name for name in self.metrics if METRICS[name].kind == kind]

    def replicates(self, label: str, metric: str) -> list[Replicated]:
        """Return a metric of each model of an arm."""
        return [self._replicate(model, metric) for model in self.models[label]]

    def _replicate(self, model: EvaluatedModel, metric: str) -> Replicated:
        key = (id(model), metric)
        if key not in self._replicated:
            item_sets = self._item_sets[id(model)][metric]
            self._replicated[key] = replicate(METRICS[metric], item_sets, self._weights)
        return self._replicated[key]

    def level(self, label: str, metric: str) -> Estimate:
        """Return a metric of an arm, with its interval."""
        return estimate_level(self._measured(label, metric))

    def difference(self, label: str, rival: str, metric: str) -> Estimate:
        """Return a metric of an arm less that of another, with its interval."""
        return estimate_difference(self._measured(label, metric), self._measured(rival, metric))

    def relative_to_full(self, label: str) -> Interval | None:
        """Return how much more accuracy an arm lost than full fine-tuning, as a share of that.

        −1 is nothing lost. None where full did not measurably lose any, or is not there.
        """
        if not {BASE, FULL} <= self.arms.keys() or label in (BASE, FULL):
            return None
        if "accuracy" not in self.metrics or not all(map(self.knows_spread, (label, FULL))):
            return None
        lost = self.difference(BASE, FULL, "accuracy")
        if lost.value <= 0 or lost.p >= SIGNIFICANT:
            return None
        return estimate_relative_change(
            *(self._measured(arm, "accuracy") for arm in (BASE, label, FULL))
        )

    def _measured(self, label: str, metric: str) -> Measured:
        return Measured(self.replicates(label, metric), self._spread(label, metric))

    def _spread(self, label: str, metric: str) -> Spread | None:
        return self._lent(label, metric)[1]

    def _lent(self, label: str, metric: str) -> tuple[list[str], Spread | None]:
        """Return the spread of an arm's trainings, and the arms that it is known from."""
        if not self.arms[label].is_trained:
            return [], NO_SPREAD
        lent: tuple[list[str], Spread | None] = [], None
        for lenders in self.lenders(label):
            spread = self._pooled(tuple(lenders), metric)
            if spread is not None:
                lent = [arm for arm in lenders if len(self.models[arm]) > 1], spread
                if spread.df >= ENOUGH_DF:
                    break
        return lent

    def lent_by_others(self, label: str) -> list[str]:
        """Return those arms of another budget that say how an arm's trainings differ."""
        lenders = self._lent(label, self.metrics[0])[0]
        return [arm for arm in lenders if self.arms[arm].budget != self.arms[label].budget]

    def _pooled(self, lenders: tuple[str, ...], metric: str) -> Spread | None:
        key = (lenders, metric)
        if key not in self._spreads:
            arms = [self.replicates(lender, metric) for lender in lenders]
            self._spreads[key] = pooled_spread(arms)
        return self._spreads[key]

    def lenders(self, label: str) -> list[list[str]]:
        """Return the arms whose trainings say how an arm's differ, the better ones first.

        Its own, if they are many. Else those of its class, and of its budget if these are enough:
        trainings on few rows differ in another measure than those on many. Arms that draw their
        rows differ by the draw, too; so they may say how fixed ones differ at most, where nothing
        else does, but never the other way round. All have as much replay as the arm itself: its
        rows are drawn, too, and how much that matters depends on how many they are.
        """
        draws, own = self._draws(label), self.arms[label]
        trained = [
            other
            for other, arm in self.arms.items()
            if arm.is_trained and arm.replay_share == own.replay_share
        ]
        alike = [other for other in trained if self._draws(other) == draws]
        of_budget = [other for other in alike if self.arms[other].budget == own.budget]
        alone = [[label]] if len(self.models[label]) >= OWN_SPREAD else []
        return [*alone, of_budget, alike, *([] if draws else [trained])]

    def knows_spread(self, label: str) -> bool:
        """Return whether anything says how trainings of an arm differ; of base nothing needs to."""
        is_known = (len(self.models[arm]) > 1 for arms in self.lenders(label) for arm in arms)
        return not self.arms[label].is_trained or any(is_known)

    def _draws(self, label: str) -> bool:
        return any(model.draws_rows for model in self.models[label])

    def forgetting(self, label: str) -> dict[str, Estimate]:
        """Estimate by general metric what an arm lost against base: above 0 is forgotten.

        A loss that rose counts as forgotten, too.
        """
        if label == BASE or BASE not in self.arms:
            return {}
        return {
            metric: self.difference(BASE, label, metric)
            if METRICS[metric].higher_is_better
            else self.difference(label, BASE, metric)
            for metric in self.measured(GENERAL)
        }

    def parts(self, label: str, metric: str) -> dict[str, float]:
        """Return a metric by task or text, as the mean over an arm's models."""
        by_model = [self._item_sets[id(model)][metric] for model in self.models[label]]
        return {
            name.partition(":")[2]: float(
                np.mean([_value(metric, name, item_sets[name]) for item_sets in by_model])
            )
            for name in by_model[0]
        }

    def by_source(self, label: str) -> dict[str, dict[str, Any]]:
        """Return the domain metrics of each source of held-out rows, as means over models."""
        return self._by(label, "source")

    def by_language(self, label: str) -> dict[str, dict[str, Any]]:
        """Return the metrics of answers by the language of the reference, as means over models."""
        return self._by(label, "language")

    def _by(self, label: str, column: str) -> dict[str, dict[str, Any]]:
        table: dict[str, dict[str, Any]] = {}
        for metric in self.measured(LEARNING):
            item_set = "rows" if metric == "loss" else "answers"
            values: dict[str, list[float]] = {}
            for model in self.models[label]:
                groups = np.array(model.scores[item_set].get(column, []))
                items = self._items[id(model)][metric][item_set]
                for group in sorted(set(groups.tolist())):
                    of_group = items[groups == group]
                    table.setdefault(group, {"n": len(of_group)})
                    measured = _without_nan(of_group)
                    if len(measured):
                        values.setdefault(group, []).append(_value(metric, item_set, measured))
            for group, of_models in values.items():
                table[group][metric] = float(np.mean(of_models))
        return table

    @cached_property
    def languages(self) -> dict[str, int]:
        """Number of answers by the language of their reference, the most frequent first."""
        (scores, *_) = (model.scores for trained in self.models.values() for model in trained)
        return dict(Counter(scores.get("answers", {}).get("language", [])).most_common())

    def is_as_large(self, label: str, rival: str) -> bool:
        """Return whether a rival has as many rows (full-equal-steps: steps), and as much replay."""
        model, other = self.models[label][0], self.models[rival][0]
        if model.arm.replay_share != other.arm.replay_share:
            return False
        if other.arm.name == FULL_STEPS:
            assert model.n_steps is not None
            assert other.n_steps is not None
            # For a budget of tokens it has as many steps as a random subset, which may be others.
            apart = max(1, STEPS_APART * other.n_steps) if model.arm.replay_share else 0
            return abs(model.n_steps - other.n_steps) <= apart
        # The same size may be said in other words: 50 % of 24 rows, or 12.
        return other.arm.budget in (None, model.arm.budget) or model.n_rows == other.n_rows

    def subsets(self) -> list[str]:
        """Return the arms that are selected by more than chance."""
        return [label for label, arm in self.arms.items() if arm.is_strategy and arm.name != RANDOM]

    def named(self, name: str) -> list[str]:
        """Return the arms of one name."""
        return [label for label, arm in self.arms.items() if arm.name == name]


def questions_of(board: Scoreboard) -> list[Question]:
    """Ask of each selected subset whether it beat full, random, and full at equal steps.

    Of each arm with replay it is asked whether it beat the same arm without.
    """
    pairs = []
    for label in board.subsets():
        for family in (FULL, RANDOM, FULL_STEPS):
            rivals = (rival for rival in board.named(family) if board.is_as_large(label, rival))
            pairs += [(label, rival, family) for rival in islice(rivals, 1)]
    for label, arm in board.arms.items():
        rival = replace(arm, replay_share=0.0).label
        if arm.replay_share and rival in board.arms:
            pairs.append((label, rival, REPLAY))
    questions = [_question(board, kind, *pair) for pair in pairs for kind in DECIDING]
    return [question for question in questions if question.deciding]


def _question(board: Scoreboard, kind: str, label: str, rival: str, family: str) -> Question:
    metrics = board.measured(kind)
    differences = {name: board.difference(label, rival, name) for name in metrics}
    forgot = {}
    if kind == GENERAL and BASE in board.arms:
        forgot = {
            key: {name: board.difference(arm, BASE, name) for name in metrics}
            for key, arm in (("arm_forgot", label), ("rival_forgot", rival))
        }
    return Question(kind, label, rival, family, differences, **forgot)


def caveats_of(board: Scoreboard) -> list[str]:
    """Say what a reader of the verdicts ought to know."""
    caveats = []
    few = [f"{size} of {name}" for name, size in board.sizes.items() if size < ENOUGH_ITEMS]
    if few:
        caveats.append(f"few items ({', '.join(few)}): intervals from so few are rough")
    alone = [label for label in board.arms if not board.knows_spread(label)]
    if alone:
        caveats.append(
            f"{', '.join(alone)}: trained once, and no arm more often whose trainings differ as "
            "much (rows drawn, or fixed): how its own would differ is in no interval"
        )
    borrowing: dict[tuple[str, ...], list[str]] = {}
    for label in board.arms:
        if lenders := board.lent_by_others(label):
            borrowing.setdefault(tuple(lenders), []).append(label)
    caveats += [
        f"{', '.join(labels)}: how trainings differ is taken from arms on other numbers of rows "
        f"({', '.join(lenders)}); if it differs more, intervals are too narrow"
        for lenders, labels in borrowing.items()
    ]
    caveats += _language_caveats(board)
    replays = any(arm.replay_share for arm in board.arms.values())
    also = " with as much replay" if replays else ""
    for name, size in ((RANDOM, "is as large"), (FULL_STEPS, "has as many steps")):
        rivals = board.named(name)
        for label in board.subsets():
            if rivals and not any(board.is_as_large(label, rival) for rival in rivals):
                caveats.append(
                    f"{label}: no {name} arm{also} {size}, so it is not compared with one"
                )
    return caveats


def _language_caveats(board: Scoreboard) -> list[str]:
    n_answers, caveats = board.sizes.get("answers", 0), []
    n_english = board.sizes.get(ENGLISH_ANSWERS, n_answers)
    said = ", ".join(f"{n} {language}" for language, n in board.languages.items())
    if n_answers and "meteor" not in board.metrics:
        caveats.append(
            f"no METEOR: it is made for English, and the references are in others ({said})"
        )
    elif n_english < n_answers:
        caveats.append(
            f"METEOR is of the {n_english} answers of {n_answers} whose reference is in English, "
            f"for which it is made ({said})"
        )
    if n_answers and "bleu" not in board.metrics:
        caveats.append(
            f"no BLEU: it counts sequences of up to {LONGEST_NGRAM} tokens, and no reference is as "
            "long"
        )
    if "(" in board.signatures.get("bleu", ""):
        caveats.append(
            f"references in several languages ({said}): BLEU's and ROUGE-L's words are cut as each "
            "one's language needs it and counted together; by_language in the JSON has them apart"
        )
    return caveats


def _items_of(scores: Mapping[str, Any]) -> ItemSetsByMetric:
    answers = scores.get("answers")
    item_sets: ItemSetsByMetric = {"loss": {"rows": _column(scores["rows"]["loss"])}}
    for name in ("meteor", "rouge_l"):
        item_sets[name] = {} if answers is None else {"answers": _column(answers[name])}
    for name in ("bleu", "chrf"):
        item_sets[name] = {} if answers is None else {"answers": np.array(answers[name], float)}
    item_sets["accuracy"] = {
        f"task:{name}": _column(task["scores"]) for name, task in sorted(scores["tasks"].items())
    }
    item_sets["text_loss"] = {
        f"text:{name}": _column(text["loss"]) for name, text in sorted(scores["texts"].items())
    }
    return item_sets


def _measured(items: ItemSetsByMetric) -> ItemSetsByMetric:
    """Leave out what METEOR and BLEU do not measure; what METEOR does is then a set of its own.

    Of less than half of the answers it says too little to decide, and is left out whole. BLEU is,
    where no reference has its longest n-grams: it would be 0 for answers that are all right.
    """
    bleu = items["bleu"].get("answers")
    # Of sacrebleu's counts: the reference's length in tokens.
    if bleu is not None and (bleu[:, 1] < LONGEST_NGRAM).all():
        items = {**items, "bleu": {}}
    answers = items["meteor"].get("answers")
    if answers is None or not np.isnan(answers).any():
        return items
    english = _without_nan(answers)
    return {
        **items,
        "meteor": {ENGLISH_ANSWERS: english} if 2 * len(english) >= len(answers) else {},
    }


def _without_nan(items_NK: np.ndarray) -> np.ndarray:
    return items_NK[~np.isnan(items_NK).any(1)]


def _column(values: Sequence[float]) -> np.ndarray:
    return np.array(values, float)[:, None]


def _same_sizes(by_model: Sequence[ItemSetsByMetric]) -> dict[str, int]:
    sizes = [
        {name: len(items) for by_set in item_sets.values() for name, items in by_set.items()}
        for item_sets in by_model
    ]
    for other in sizes[1:]:
        if other != sizes[0]:
            raise GradsiftError(f"arms were asked different things: {sizes[0]} and {other} items.")
    return sizes[0]


def _same_signatures(models: Sequence[EvaluatedModel]) -> dict[str, str]:
    found = [model.scores.get("answers", {}).get("signatures", {}) for model in models]
    for other in found[1:]:
        if other != found[0]:
            raise GradsiftError(
                f"arms' answers were scored in different ways: {found[0]} and {other}."
            )
    return dict(found[0])


def _value(metric: str, name: str, items_NK: np.ndarray) -> float:
    return replicate(METRICS[metric], {name: items_NK}, {name: np.ones((1, len(items_NK)))}).value
