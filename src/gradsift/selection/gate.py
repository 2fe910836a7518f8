"""Which rows are faulty, told by the pool itself: rows beside its own answers after other prompts.

Shapes: N instances of the pool, J of them judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradsift.errors import GradsiftError
from gradsift.selection.adjustment import detrended
from gradsift.selection.scores import robust_standardise
from gradsift.wording import counted

UNRELATED = "answer_does_not_depend_on_prompt"
NO_TEXT = "answer_is_hardly_text"
# Rows below which a share is not told: its interval would be wider than ± 0.1.
FEWEST_ROWS = 50
# Of Storey's estimate.
_LAMBDA = 0.5
_RESAMPLED = 400
# Robust standard deviations above rows of the same length: of a normal sample 0.6 % lie beyond.
_UNLIKELY = 2.5


class CannotJudge(GradsiftError):
    """The gate cannot say which rows of this pool are faulty, and why."""


@dataclass(frozen=True)
class Share:
    """An estimate with its 95 % interval; shares from 0 to 1."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Gate:
    """What became of each row.

    Attributes:
        advantage_N: Nats by which the whole response is likelier after its own prompt than after
            that of another row (the log of the likelihood ratio); NaN where there is no prompt, or
            no other.
        null_N: The same for a third row's prompt in place of its own; NaN where that is not known.
        p_N: Share of the null that is at least as large as the row's own advantage; NaN where the
            row is not judged.
        loss_N: Of the response after the other row's prompt, in nats for each token.
        unlikely_N: That loss, in robust standard deviations above rows of the same length; NaN
            where there is none.
        threshold: For p: the share of the faulty rows that are not named.
    """

    advantage_N: np.ndarray
    null_N: np.ndarray
    p_N: np.ndarray
    loss_N: np.ndarray
    unlikely_N: np.ndarray
    threshold: float

    @property
    def unrelated_N(self) -> np.ndarray:
        """Whether a row is named because its answer does not depend on its prompt."""
        return self.p_N > self.threshold

    @property
    def no_text_N(self) -> np.ndarray:
        """Whether a row is named because its answer is hardly text."""
        return self.unlikely_N > _UNLIKELY

    @property
    def named_N(self) -> np.ndarray:
        """Whether a row is called faulty, for either reason."""
        return self.unrelated_N | self.no_text_N

    @property
    def reasons(self) -> list[str | None]:
        """Why each row is called faulty; None for the others."""
        # Text that is none depends on no prompt either.
        pairs = zip(self.no_text_N.tolist(), self.unrelated_N.tolist(), strict=True)
        return [NO_TEXT if no_text else UNRELATED if other else None for no_text, other in pairs]

    def detail(self, row: int) -> str:
        """Say in words why a row is called faulty."""
        if self.no_text_N[row]:
            return (
                f"its loss of {self.loss_N[row]:.2f} nats a token before training is "
                f"{self.unlikely_N[row]:.1f} robust standard deviations above rows of its length, "
                f"more than {_UNLIKELY:g}"
            )
        words = in_words(float(self.advantage_N[row]), float(self.p_N[row]))
        return f"{words}, more than {self.threshold:g}"

    @property
    def n_judged(self) -> int:
        """Rows of which it could be told whether their answer depends on their prompt."""
        return int(np.isfinite(self.p_N).sum())

    @property
    def n_passing(self) -> int:
        """Rows that are not called faulty, judged or not."""
        return int((~self.named_N).sum())

    @cached_property
    def unrelated_share(self) -> Share:
        """Estimate which share of the judged rows is no likelier after its own prompt."""
        judged_N = np.isfinite(self.p_N)
        return _share(self.advantage_N[judged_N], self.null_N[judged_N])

    def good_named(self, share: float) -> float:
        """Expect so many good rows among those named for their prompt, given the share of bad."""
        found = share * self.n_judged * (1 - self.threshold)
        there = (1 - share) * self.n_judged
        return min(max(0.0, int(self.unrelated_N.sum()) - found), there)

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        share = self.unrelated_share
        return {
            "threshold": self.threshold,
            "n_judged": self.n_judged,
            "n_not_judged": len(self.p_N) - self.n_judged,
            "n_pairs": int(np.isfinite(self.null_N).sum()),
            "unrelated_share": vars(share),
            "n_named": {
                UNRELATED: self.reasons.count(UNRELATED),
                NO_TEXT: self.reasons.count(NO_TEXT),
            },
            "expected_good_among_unrelated": self.good_named(share.estimate),
            "expected_share_of_unrelated_missed": self.threshold,
            "n_passing": self.n_passing,
        }

    def lines(self) -> list[str]:
        """Return what a person wants to know."""
        share, n = self.unrelated_share, self.n_judged
        good = [self.good_named(one) for one in (share.high, share.estimate, share.low)]
        lines = [
            f"answers that do not depend on their prompt: {100 * share.estimate:.0f} % of {n} rows "
            f"({100 * share.low:.0f} to {100 * share.high:.0f} %, a 95 % interval)",
            f"named for that, at p > {self.threshold:g}: {int(self.unrelated_N.sum())} rows, about "
            f"{good[1]:.0f} of them good ({good[0]:.0f} to {good[2]:.0f}); about "
            f"{100 * self.threshold:.0f} % of the faulty ones are missed",
            f"answers that are hardly text: {counted(int(self.no_text_N.sum()), 'row')} named",
        ]
        if n < len(self.p_N):
            lines.append(
                f"not judged by their prompt: {len(self.p_N) - n} rows without one, or with the "
                "same as most others"
            )
        return lines


def in_words(advantage: float, p: float) -> str:
    """Say how much likelier a response is after its own prompt, and how that compares."""
    how = "likelier" if advantage >= 0 else "less likely"
    return (
        f"its own prompt makes it {how} than another row's by {abs(advantage):.1f} nats; a third "
        f"row's does as well or better in {100 * p:.0f} % of the pairs (p {p:.2f})"
    )


def judge(
    reference_losses: Mapping[str, np.ndarray], n_response: np.ndarray, threshold: float
) -> Gate:
    """Call rows faulty whose response is no likelier after its own prompt, or is hardly text.

    Compared are the likelihoods of the same response after its own prompt and after that of
    another row; what that comes to where the prompt is not its own is known from a third row's
    prompt. So each response is compared with itself, whatever its topic and style. It is the
    likelihood ratio of whole responses: those of responses of any length spread alike where the
    prompt is not their own, as means over tokens do not.

    How unlikely the answer is as such is told by its loss after the other row's prompt: what its
    own prompt says must not excuse it, nor the lack of that count against it.

    Args:
        reference_losses: `response`, `text`, `mismatched`, `mismatched_again` → [N].
        n_response: [N] response tokens.
        threshold: For p.

    Raises:
        CannotJudge: If there are too few rows, prompts, or different prompts.
    """
    own_N, other_N = reference_losses["response"], reference_losses["mismatched"]
    advantage_N = (other_N - own_N) * n_response
    null_N = (other_N - reference_losses["mismatched_again"]) * n_response
    # All that a row without a prompt says is its response.
    has_prompt_N = reference_losses["text"] != own_N
    _require_enough(has_prompt_N, advantage_N, null_N)
    unlikely_N, known_N = np.full(len(other_N), np.nan), np.isfinite(other_N)
    unlikely_N[known_N] = robust_standardise(detrended(other_N[known_N], [n_response[known_N]]))
    p_N = p_values(advantage_N, null_N)
    return Gate(advantage_N, null_N, p_N, other_N, unlikely_N, threshold)


def _require_enough(has_prompt_N: np.ndarray, advantage_N: np.ndarray, null_N: np.ndarray) -> None:
    n, n_prompts = len(has_prompt_N), int(has_prompt_N.sum())
    n_pairs = min(int(np.isfinite(values_N).sum()) for values_N in (advantage_N, null_N))
    cannot = "whether answers depend on their prompts cannot be told: "
    if n < FEWEST_ROWS:
        raise CannotJudge(f"{cannot}there are {n} rows, at least {FEWEST_ROWS} are needed.")
    if n_prompts < FEWEST_ROWS:
        raise CannotJudge(
            f"{cannot}{n_prompts} of {n} rows have a prompt, at least {FEWEST_ROWS} are needed. "
            "Rows of text have none; `truncation: keep_end` cuts it off where `max_length` is "
            "short."
        )
    if n_pairs < FEWEST_ROWS:
        raise CannotJudge(
            f"{cannot}of {n_prompts} rows with a prompt {n_prompts - n_pairs} have the same as "
            "most others, or there are too few different prompts to compare it with two."
        )


def too_many_rows(gate: Gate, n_rows: int) -> list[str]:
    """Say so where so many rows cannot all be good, by the estimate."""
    # The interval takes a while on a large pool, and is seldom needed.
    bad = null_share(gate.p_N[np.isfinite(gate.p_N)])
    # Of rows that are not judged nothing better is known than of the others.
    if n_rows <= (1 - bad) * len(gate.p_N):
        return []
    share = gate.unrelated_share
    of = "the pool" if gate.n_judged == len(gate.p_N) else f"the {gate.n_judged} judged rows"
    return [
        f"{n_rows} rows are more than the good ones: in {100 * share.estimate:.0f} % of {of} "
        f"({100 * share.low:.0f} to {100 * share.high:.0f} %) the answer does not depend on the "
        "prompt. A budget that exceeds the good rows cannot be kept clean; gradsift audit shows "
        "such rows, `gate` drops them"
    ]


def p_values(value_N: np.ndarray, null_N: np.ndarray) -> np.ndarray:
    """Return the share of null values at least as large as each value, the value among them.

    NaN where there is no value; null values that are NaN do not count.
    """
    null_M = np.sort(null_N[np.isfinite(null_N)])
    at_least_N = len(null_M) - np.searchsorted(null_M, value_N, side="left")
    return np.where(np.isfinite(value_N), (1 + at_least_N) / (1 + len(null_M)), np.nan)


def null_share(p_J: np.ndarray) -> float:
    """Estimate the share of p-values that come from the null, whose p-values are uniform.

    Storey's #{p > λ} / ((1 − λ) J) with λ = 1/2: twice the share of rows that are worse than the
    median of the pairs. Of pools made up with 5 to 50 % faulty rows this was unbiased and spread
    the least; a λ chosen by bootstrap was 5 to 15 % too low, a spline spread twice as far.
    """
    return min(1.0, float((p_J > _LAMBDA).mean()) / (1 - _LAMBDA))


def _share(value_J: np.ndarray, null_J: np.ndarray) -> Share:
    """Estimate with an interval: rows are drawn with putting back, each with its null value."""
    estimate = null_share(p_values(value_J, null_J))
    draw, n = np.random.default_rng(0), len(value_J)
    found = []
    for _ in range(_RESAMPLED):
        rows = draw.integers(n, size=n)
        found.append(null_share(p_values(value_J[rows], null_J[rows])))
    low, high = np.quantile(found, [0.025, 0.975])
    return Share(estimate, min(estimate, float(low)), max(estimate, float(high)))
