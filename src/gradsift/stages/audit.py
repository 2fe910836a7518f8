"""An audit as a program and as a person wants it."""

from __future__ import annotations

from gradsift.selection.audit import Audit, Mix

_SHOWN = 5


def audit_summary(audit: Audit) -> dict[str, object]:
    """Return what a program wants to know.

    Args:
        audit: Of a selection.

    Returns:
        Values by name; pairs are `pool` and `subset`.
    """
    names = (
        "n_rows",
        "response_tokens",
        "loss",
        "gradient_score",
        "high_loss_share",
        "duplicate_share",
    )
    pairs = {
        name: dict(zip(("pool", "subset"), getattr(audit, name), strict=True)) for name in names
    }
    mixes = {
        name: None if mix is None else _mix_summary(mix)
        for name, mix in (
            ("topics", audit.topics),
            ("sources", audit.sources),
            ("languages", audit.languages),
        )
    }
    return {
        **pairs,
        **mixes,
        "score_length_correlation": audit.length_correlation,
        "selected_length_correlation": audit.selected_length_correlation,
    }


def audit_lines(audit: Audit) -> list[str]:
    """Return what a person wants to know.

    Args:
        audit: Of a selection.

    Returns:
        Lines of a table: the pool, the subset.
    """
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
    ):
        lines.append(f"{label:44}" + "".join(f"{100 * value:9.1f}%" for value in pair))
    lines.append(f"{'topics':44}" + "".join(f"{n:10}" for n in _present(audit.topics)))
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


def _mix_summary(mix: Mix) -> dict[str, object]:
    return {
        "counts": {value: {"pool": a, "subset": b} for value, (a, b) in mix.counts.items()},
        "distance": mix.distance,
        "missing": mix.missing,
        "shrunk": list(mix.shrunk),
    }


def _mix_lines(label: str, mix: Mix) -> list[str]:
    totals = [sum(pair[side] for pair in mix.counts.values()) for side in (0, 1)]
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
