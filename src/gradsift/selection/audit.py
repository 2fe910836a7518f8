"""What a subset is like beside its pool, what ought to worry the user, and both in words.

Shapes: N instances of the pool, S rows of a subset.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradsift.selection.candidates import Candidates
from gradsift.selection.chance import (
    RARE,
    RARE_DEVIATIONS,
    RARE_DEVIATIONS_EITHER_SIDE,
    chance_of_so_many,
    deviations,
)
from gradsift.selection.neighbours import Neighbours
from gradsift.selection.scores import percentile_rank, rank_correlation

# The score is mostly length above this rank correlation.
LENGTH_WARNING = 0.5
# A density cut that calls more than this share of the pool untypical is too sharp.
CUT_WARNING = 0.10
# More than this share of gradients that are not finite means that extraction went wrong.
NON_FINITE_WARNING = 0.01
# The tenth of the pool with the highest loss may be over-represented by this factor.
HIGH_LOSS_WARNING = 1.5
_HIGH_LOSS_SHARE = 0.1
# A subset is too easy where a row of it has, on average, a lower loss than two thirds of the pool.
EASY_WARNING = 1 / 3
# A source has vanished if none of its rows is kept where this many would be by chance.
_EXPECTED_ROWS = 3.0
# Values of a property, and warnings of a kind, that are shown.
_SHOWN = 5


@dataclass(frozen=True)
class Mix:
    """How a property is spread, in rows: value → (in the pool, in the subset)."""

    counts: dict[str, tuple[int, int]]

    @property
    def totals(self) -> tuple[int, int]:
        """Rows in the pool, in the subset."""
        pairs = self.counts.values()
        return sum(pool for pool, _ in pairs), sum(subset for _, subset in pairs)

    @property
    def distance(self) -> float:
        """Total variation distance of the two distributions, 0 (alike) to 1."""
        pool, subset = self.totals
        return 0.5 * sum(abs(a / pool - b / subset) for a, b in self.counts.values())

    @property
    def kept(self) -> float:
        """Rows of the subset, in percent of the pool's."""
        pool, subset = self.totals
        return 100 * subset / pool

    @property
    def missing(self) -> list[str]:
        """Values of the pool that the subset has not, although chance would have brought some."""
        pool, subset = self.totals
        return [
            value
            for value, (a, b) in self.counts.items()
            if b == 0 and a * subset / pool >= _EXPECTED_ROWS
        ]

    @property
    def shrunk(self) -> dict[str, tuple[float, float]]:
        """Values whose share fell below half, more than by chance: share of pool, of subset."""
        pool, subset = self.totals
        shares = {}
        for value, (a, b) in self.counts.items():
            share, kept = a / pool, b / subset
            # Of a random subset, drawn without putting back.
            deviation = math.sqrt(share * (1 - share) / subset * (pool - subset) / max(1, pool - 1))
            if b and kept < share / 2 and share - kept > RARE_DEVIATIONS * deviation:
                shares[value] = (share, kept)
        return shares


@dataclass(frozen=True)
class Audit:
    """A subset beside its pool. Pairs are (pool, subset).

    Attributes:
        response_tokens: Median.
        loss: Mean.
        gradient_score: Mean.
        high_loss_share: Share of the rows whose loss is in the pool's highest tenth.
        loss_rank: Mean rank of the loss in the pool, 0 (the lowest) to 1.
        loss_deviations: How far the subset's loss rank is above the pool's, beside what chance
            does.
        duplicate_share: Rows with an earlier near-duplicate (by id) among the rows, as a share.
        clusters: How clusters of content are spread.
        sources: None where the pool does not say.
        languages: None where the pool does not say.
        length_correlation: Rank correlation of the gradient score with response tokens.
        selected_length_correlation: The same of being selected.
        score_of_choice: Mean gradient score of the rows that there was a choice of, and of those
            of them that were taken; None where that was none or all of them.
    """

    n_rows: tuple[int, int]
    response_tokens: tuple[float, float]
    loss: tuple[float, float]
    gradient_score: tuple[float, float]
    high_loss_share: tuple[float, float]
    loss_rank: tuple[float, float]
    loss_deviations: float
    duplicate_share: tuple[float, float]
    clusters: Mix
    sources: Mix | None
    languages: Mix | None
    length_correlation: float | None
    selected_length_correlation: float | None
    score_of_choice: tuple[float, float] | None


def audit_of(
    pool: Candidates,
    selected_S: np.ndarray,
    score_N: np.ndarray,
    cluster_N: np.ndarray,
    neighbours: Neighbours,
    similarity_threshold: float,
    open_N: np.ndarray | None = None,
) -> Audit:
    """Compare a subset of at least one row with its pool; `open_N`: rows to choose from."""
    selected_N = np.zeros(len(pool), dtype=bool)
    selected_N[selected_S] = True
    everything = np.arange(len(pool))
    open_N = np.ones(len(pool), dtype=bool) if open_N is None else open_N

    def pair(value_N: np.ndarray, summarise=np.mean) -> tuple[float, float]:
        return float(summarise(value_N)), float(summarise(value_N[selected_S]))

    high_loss_N = pool.loss >= np.quantile(pool.loss, 1 - _HIGH_LOSS_SHARE)
    loss_rank_N = percentile_rank(pool.loss)
    return Audit(
        n_rows=(len(pool), len(selected_S)),
        response_tokens=pair(pool.n_response_tokens, np.median),
        loss=pair(pool.loss),
        gradient_score=pair(score_N),
        high_loss_share=pair(high_loss_N),
        loss_rank=pair(loss_rank_N),
        loss_deviations=deviations(loss_rank_N, selected_N),
        duplicate_share=(
            repeated_share(neighbours, everything, similarity_threshold),
            repeated_share(neighbours, selected_S, similarity_threshold),
        ),
        clusters=_mix([str(cluster) for cluster in cluster_N], selected_N),
        sources=_mix(pool.source, selected_N),
        languages=_mix(pool.language, selected_N),
        length_correlation=rank_correlation(score_N, pool.n_response_tokens),
        selected_length_correlation=rank_correlation(
            selected_N.astype(float), pool.n_response_tokens
        ),
        score_of_choice=(
            (float(score_N[open_N].mean()), float(score_N[open_N & selected_N].mean()))
            if (open_N & ~selected_N).any() and (open_N & selected_N).any()
            else None
        ),
    )


def audit_warnings(
    audit: Audit,
    *,
    self_checked: bool,
    non_finite_share: float,
    cut_share: float | None,
    uses_score: bool,
    detrend: Sequence[str],
) -> list[str]:
    """Say what ought to worry the user: the four failures that GrADS warns of, and length.

    Args:
        audit: Of a selection.
        self_checked: Whether recorded gradients were compared with autograd.
        non_finite_share: Of the instances.
        cut_share: Share of the pool that the density cut removes; None where there is no cut.
        uses_score: Whether the strategy went by the gradient score.
        detrend: What was taken off the score.
    """
    lines = []
    if not self_checked:
        lines.append(
            "gradients were never compared with autograd on this model: run gradsift check MODEL"
        )
    if non_finite_share > NON_FINITE_WARNING:
        lines.append(
            f"{100 * non_finite_share:.1f} % of the gradients are not finite: capture "
            "in float32, or with a lower learning rate"
        )
    if cut_share is not None and cut_share > CUT_WARNING:
        lines.append(
            f"the density cut calls {100 * cut_share:.0f} % of the pool untypical: more than "
            f"{100 * CUT_WARNING:.0f} % is rarely noise; compare with another `score`"
        )
    by_chance, chosen = audit.score_of_choice or (0.0, 0.0)
    # As they are shown.
    if uses_score and round(chosen, 2) < round(by_chance, 2):
        lines.append(
            f"the mean gradient score of the rows that were chosen is {chosen:.2f}, below "
            f"{by_chance:.2f} of a random subset: diversity outweighs it; raise `alpha` or lower "
            "`beta`"
        )
    pool, subset = audit.high_loss_share
    if subset > HIGH_LOSS_WARNING * pool and _is_rare(audit.high_loss_share, audit.n_rows):
        lines.append(
            f"the tenth of the pool with the highest loss makes {100 * subset:.0f} % of the "
            "subset: wrong or garbled answers gather there; look at some of them"
        )
    _, subset = audit.loss_rank
    if subset < EASY_WARNING and audit.loss_deviations < -RARE_DEVIATIONS_EITHER_SIDE:
        lines.append(
            f"too easy: on average a kept row has a lower loss than {100 * (1 - subset):.0f} % of "
            "the pool, so the model knows much of it already; compare with strategy random before "
            "you train"
        )
    rho = audit.length_correlation
    if uses_score and rho is not None and abs(rho) > LENGTH_WARNING:
        advice = (
            " although `detrend` takes the length off: compare with another `score`"
            if "response_length" in detrend
            else ": try `detrend: response_length`"
        )
        lines.append(
            f"the gradient score is mostly {'length' if rho > 0 else 'shortness'} (rank "
            f"correlation {rho:+.2f}){advice}"
        )
    return [
        *lines,
        *_mix_warnings("source", audit.sources),
        *_mix_warnings("language", audit.languages),
    ]


def _is_rare(shares: tuple[float, float], n_rows: tuple[int, int]) -> bool:
    marked, drawn = (round(share * n) for share, n in zip(shares, n_rows, strict=True))
    return chance_of_so_many(drawn, n_rows[1], marked, n_rows[0]) < RARE


def _mix_warnings(name: str, mix: Mix | None) -> list[str]:
    if mix is None:
        return []
    lines = []
    if mix.missing:
        values = ", ".join(map(repr, mix.missing[:_SHOWN]))
        lines.append(f"{name} {values} has vanished: no row of it is kept")
    for value, (share, kept) in list(mix.shrunk.items())[:_SHOWN]:
        lines.append(
            f"{name} {value!r} has shrunk from {100 * share:.0f} % of the pool to "
            f"{100 * kept:.0f} % of the subset"
            + (f"; `quota` '*={mix.kept:.3g}%' keeps it" if name == "source" else "")
        )
    return lines


def repeated_share(
    neighbours: Neighbours, rows_S: np.ndarray, similarity_threshold: float
) -> float:
    """Compute the share of rows that repeat another one of them with a smaller position."""
    inside_N = np.zeros(len(neighbours), dtype=bool)
    inside_N[rows_S] = True
    first_E, second_E, _ = neighbours.pairs_above(similarity_threshold)
    repeats_E = inside_N[first_E] & inside_N[second_E]
    return len(np.unique(second_E[repeats_E])) / len(rows_S)


def overlap(first: Iterable[object], second: Iterable[object]) -> float:
    """Compute Jaccard's index |A ∩ B| / |A ∪ B| of two subsets, positions or ids."""
    a, b = set(first), set(second)
    return len(a & b) / len(a | b)


def _mix(values: Sequence[str] | None, selected_N: np.ndarray) -> Mix | None:
    if values is None:
        return None
    pool = Counter(values)
    subset = Counter(value for value, kept in zip(values, selected_N, strict=True) if kept)
    return Mix({value: (count, subset[value]) for value, count in pool.most_common()})


def audit_summary(audit: Audit) -> dict[str, object]:
    """Return what a program wants to know: values by name; pairs are `pool` and `subset`."""
    pairs = {
        name: dict(zip(("pool", "subset"), getattr(audit, name), strict=True))
        for name in (
            *("n_rows", "response_tokens", "loss", "gradient_score"),
            *("high_loss_share", "loss_rank", "duplicate_share"),
        )
    }
    mixes = {
        name: _mix_summary(getattr(audit, name)) for name in ("clusters", "sources", "languages")
    }
    return {
        **pairs,
        **mixes,
        "score_length_correlation": audit.length_correlation,
        "selected_length_correlation": audit.selected_length_correlation,
    }


def attained_lines(attained: Mapping[str, float | None]) -> list[str]:
    """Say which share of each possible gain a subset attains, and what could gain nothing."""
    names = {
        "gradient": "the gradient score",
        "diversity": "content diversity",
        "similarity": "similarity reduction",
    }
    shares = [
        f"{100 * share:.0f} % of {names[term]}"
        for term, share in attained.items()
        if share is not None
    ]
    lines = []
    if shares:
        lines.append(f"of what each alone could gain over a random subset: {', '.join(shares)}")
    lines += [
        f"{names[term]} can gain nothing over a random subset here, so it counts 0"
        for term, share in attained.items()
        if share is None
    ]
    return lines


def audit_lines(audit: Audit, more: Sequence[tuple[str, tuple[float, float]]] = ()) -> list[str]:
    """Return what a person wants to know: lines of a table, with `more` shares in it."""
    lines = [f"{'rows':44}{'pool':>10}{'subset':>10}"]
    for label, pair, digits in (
        ("median response tokens", audit.response_tokens, 0),
        ("mean loss", audit.loss, 3),
        ("mean gradient score", audit.gradient_score, 3),
    ):
        lines.append(f"{label:44}" + "".join(f"{value:10.{digits}f}" for value in pair))
    for label, pair in (
        ("among the tenth with the highest loss", audit.high_loss_share),
        ("near-duplicates of an earlier row", audit.duplicate_share),
        *more,
    ):
        lines.append(f"{label:44}" + "".join(f"{100 * value:9.1f}%" for value in pair))
    lines.append(f"{'clusters':44}" + "".join(f"{n:10}" for n in _present(audit.clusters)))
    for label, mix in (("source", audit.sources), ("language", audit.languages)):
        if mix is not None:
            lines += _mix_lines(label, mix)
    if audit.length_correlation is not None:
        lines.append(
            "rank correlation of the gradient score with response length "
            f"{audit.length_correlation:+.2f}"
        )
    return lines


def _present(mix: Mix) -> tuple[int, int]:
    return len(mix.counts), sum(subset > 0 for _, subset in mix.counts.values())


def _mix_summary(mix: Mix | None) -> dict[str, object] | None:
    return mix and {
        "counts": {value: {"pool": a, "subset": b} for value, (a, b) in mix.counts.items()},
        "distance": mix.distance,
        "missing": mix.missing,
        "shrunk": list(mix.shrunk),
    }


def _mix_lines(label: str, mix: Mix) -> list[str]:
    totals = mix.totals
    lines = []
    for value, pair in list(mix.counts.items())[:_SHOWN]:
        shares = "".join(
            f"{100 * count / total:9.1f}%" for count, total in zip(pair, totals, strict=True)
        )
        # A name may be anything that a file holds.
        name = "".join(c if c.isprintable() else "?" for c in f"{label} {value}")
        lines.append(f"{name[:43]:44}{shares}")
    if len(mix.counts) > _SHOWN:
        lines.append(f"and {len(mix.counts) - _SHOWN} more, see selection.json")
    return lines
