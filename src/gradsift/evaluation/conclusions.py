"""Questions about arms, each with figures and one sentence; "cannot tell" is an answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from scipy import stats
from statsmodels.stats.multitest import multipletests

from gradsift.evaluation.intervals import SIGNIFICANT, Estimate, needed
from gradsift.evaluation.metrics import DECIDING, GENERAL, LEARNING, METRICS, Metric

YES = "yes"
NO = "no"
MIXED = "mixed"
CANNOT_TELL = "cannot tell"
NOTHING_TO_TELL = "nothing to tell"


@dataclass(frozen=True)
class Question:
    """Whether one arm is better than another at learning, or at general ability.

    Attributes:
        kind: LEARNING or GENERAL.
        family: What the rivals of this and other questions have in common; p-values are adjusted
            for all questions of one kind and family.
        differences: By metric, arm minus rival.
        arm_forgot: By metric, arm minus base, for GENERAL if there is a base arm.
        rival_forgot: By metric, rival minus base, likewise.
    """

    kind: str
    arm: str
    rival: str
    family: str
    differences: dict[str, Estimate]
    arm_forgot: dict[str, Estimate] | None = None
    rival_forgot: dict[str, Estimate] | None = None

    @property
    def deciding(self) -> list[str]:
        """The metrics that are there of those that decide."""
        return [name for name in DECIDING[self.kind] if name in self.differences]

    @property
    def of_unknown_spread(self) -> list[str]:
        """The arms of which nothing says how their trainings differ: no interval holds that."""
        pairs = (
            zip((self.arm, self.rival), difference.uncertainty.trainings, strict=False)
            for difference in self.differences.values()
        )
        found = {arm for pair in pairs for arm, trained in pair if trained.spread is None}
        return [arm for arm in (self.arm, self.rival) if arm in found]


@dataclass(frozen=True)
class Verdict:
    """The answer to a question.

    Attributes:
        answer: yes, no (worse), mixed, cannot tell, or nothing to tell.
        adjusted_p: By deciding metric, adjusted for all deciding metrics of all questions of
            this kind and family. Empty where the spread of trainings is not known.
    """

    question: Question
    answer: str
    sentence: str
    adjusted_p: dict[str, float]


def decide(questions: Sequence[Question]) -> list[Verdict]:
    """Answer questions, with p-values adjusted for their number (Holm).

    They are adjusted within each kind and family, over all arms and deciding metrics. An arm is
    better where at least one deciding metric says so and none says the opposite. Where neither arm
    measurably forgot anything, a difference between them is not forgetting. Where nothing says how
    the trainings of an arm differ, nothing can be told, and the question counts for no other.
    """
    adjusted: list[dict[str, float]] = [{} for _ in questions]
    n_tests: list[dict[str, int]] = [{} for _ in questions]
    for which in dict.fromkeys((question.kind, question.family) for question in questions):
        family = [
            (at, name)
            for at, question in enumerate(questions)
            if (question.kind, question.family) == which and not question.of_unknown_spread
            for name in question.deciding
        ]
        p_values = [questions[at].differences[name].p for at, name in family]
        for (at, name), p, n in zip(
            family, holm(p_values), holm_multipliers(p_values), strict=True
        ):
            adjusted[at][name], n_tests[at][name] = p, n
    return [_decide(*case) for case in zip(questions, adjusted, n_tests, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of one family for their number (Holm, Scand. J. Statist. 1979)."""
    return multipletests(p_values, method="holm")[1].tolist() if p_values else []


def holm_multipliers(p_values: Sequence[float]) -> list[int]:
    """Return by what Holm multiplies each p-value: the number of those that are not smaller."""
    return (len(p_values) + 1 - stats.rankdata(p_values, "ordinal")).tolist()


def _decide(question: Question, adjusted: dict[str, float], n_tests: dict[str, int]) -> Verdict:
    clear = {name for name in adjusted if adjusted[name] < SIGNIFICANT}
    better = {name for name in clear if _is_better(name, question.differences[name].value)}
    nothing = _nothing_to_tell(question, any_clear=bool(clear))
    if nothing is not None:
        answer = NOTHING_TO_TELL
    elif better and clear - better:
        answer = MIXED
    elif better:
        answer = YES
    elif clear:
        answer = NO
    else:
        answer = CANNOT_TELL
    sentence = _sentence(question, answer, adjusted, n_tests, nothing)
    return Verdict(question, answer, sentence, adjusted)


def _nothing_to_tell(question: Question, *, any_clear: bool) -> str | None:
    """Return why there is nothing to compare, or None."""
    differences = [question.differences[name] for name in question.deciding]
    if differences and all(d.value == 0 and d.uncertainty.items.variance == 0 for d in differences):
        return "both answered everything alike"
    if question.kind == GENERAL:
        if _kept_all(question, question.arm_forgot) and _kept_all(question, question.rival_forgot):
            return "neither measurably forgot anything here"
        if not any_clear and _kept_all(question, question.rival_forgot):
            return f"{question.rival} did not measurably forget here"
    return None


def _kept_all(question: Question, forgot: dict[str, Estimate] | None) -> bool:
    if forgot is None:
        return False
    deciding = {name: forgot[name] for name in question.deciding}
    # What has no interval was not measured, so it cannot have been kept.
    return all(isfinite(change.high) for change in deciding.values()) and not any(
        change.p < SIGNIFICANT and not _is_better(name, change.value)
        for name, change in deciding.items()
    )


def _sentence(
    question: Question,
    answer: str,
    adjusted: dict[str, float],
    n_tests: dict[str, int],
    nothing: str | None,
) -> str:
    verb = "learn more" if question.kind == LEARNING else "forget less"
    wording = f"Did {question.arm} {verb} than {question.rival}?"
    once = " and ".join(question.of_unknown_spread)
    figures = "; ".join(
        f"{METRICS[name].label} {_figure(METRICS[name], question.differences[name])}"
        + (f" (p {_p(adjusted[name])})" if adjusted else " (over items only)")
        for name in question.deciding
    )
    if not figures:
        return f"{wording} Nothing was measured that could tell."
    words = {
        YES: "Yes",
        NO: "No, it did worse" if question.kind == LEARNING else "No, it forgot more",
        MIXED: "In one respect more, in another less",
        CANNOT_TELL: f"Cannot tell, as nothing says how trainings of {once} differ"
        if once
        else "Cannot tell at this size",
        NOTHING_TO_TELL: f"Nothing to tell: {nothing}",
    }
    more = ""
    if answer == CANNOT_TELL:
        nearest = min(question.deciding, key=lambda name: question.differences[name].p)
        effort = needed(question.differences[nearest], n_tests.get(nearest, 1))
        more = f"; {effort}" if once else f"; for {METRICS[nearest].label} {effort}"
    return f"{wording} {words[answer]}: {figures}{more}."


def _is_better(name: str, difference: float) -> bool:
    return difference > 0 if METRICS[name].higher_is_better else difference < 0


def _figure(metric: Metric, difference: Estimate) -> str:
    d = metric.digits
    interval = f"[{difference.low:+.{d}f}, {difference.high:+.{d}f}]"
    return f"{difference.value:+.{d}f} {interval if isfinite(difference.high) else '[no interval]'}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
