"""Show rows of a run: what they say, and what a selection decided on them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradsift.data.pool import place
from gradsift.data.texts import asked_first
from gradsift.decided import (
    find_row,
    floats,
    latest_of,
    read_decisions,
    whole_selections,
    worth_of,
)
from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.store.reader import GradientStore
from gradsift.store.tables import DROPPED
from gradsift.wording import clipped, columns_of_terminal, in_line, joined

Which = Literal["kept", "rejected", "dropped", "borderline"]
_DECISIONS = {"kept": "selected", "rejected": "rejected", "dropped": "dropped"}


@dataclass(frozen=True)
class Shown:
    """Some rows of a run, and what a selection decided on them.

    Attributes:
        run: The run folder.
        selection: Whose decisions they are.
        what: Which rows these are, in words.
        rows: Their lines of decisions.parquet, and `index_in_file`; with `similarity` where they
            are near to a row.
    """

    run: Path
    selection: str
    what: str
    rows: tuple[dict[str, Any], ...]

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        return in_line(f"Shown({len(self.rows)} rows of {self.selection}: {self.what})")

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know: whole texts."""
        return {"run": str(self.run), "selection": self.selection, "rows": list(self.rows)}

    def text(self) -> str:
        """Return what a person wants to know: texts are cut to the width of the terminal."""
        width = columns_of_terminal()
        lines = [f"{self.selection}: {self.what}"]
        for row in self.rows:
            lines += ["", clipped(_head(row), width)]
            for title, text in (("prompt", row.get("prompt")), ("answer", row.get("response"))):
                if text:
                    text = asked_first(text) if title == "prompt" else text
                    lines.append(f"  {title:8}{clipped(text, width - 10)}")
            why = textwrap.wrap(in_line(row["reason"]), width - 10)
            lines += [f"  {'' if at else 'why':8}{line}" for at, line in enumerate(why)]
        there = [row for row in self.rows if row["decision"] != DROPPED]
        if there and all(row.get("response") is None for row in there):
            lines += ["", "what they say is not known here: select again, and it is"]
        return joined(lines)


def _head(row: dict[str, Any]) -> str:
    where = place(row["row"], row["line"], row["file"], row.get("index_in_file"))
    decision = "kept" if row["selected"] else row["decision"]
    facts = [f"{row['instance_id']} ({where})", decision]
    if row.get("rank") is not None:
        facts[-1] += f", rank {row['rank']}"
    for name, words, digits in (
        ("similarity", "similarity", 2),
        ("loss", "loss", 2),
        ("gradient_score", "score", 2),
    ):
        if row.get(name) is not None:
            facts.append(f"{words} {row[name]:.{digits}f}")
    return " · ".join(facts)


def show(
    run: str | Path | GradientStore | Run,
    which: Which = "kept",
    *,
    near: str | None = None,
    name: str | None = None,
    n: int = 10,
) -> Shown:
    """Show rows of a run: what they say, and what a selection decided on them.

    Args:
        run: A run folder, its store, or a selection of it.
        which: "kept" (the first taken first), "rejected" (the farthest from being kept first),
            "dropped", or "borderline": the last rows kept and the first that were not.
        near: A row, as for `explain`: rows that are nearest to it in content, itself first, kept or
            not, in place of `which`.
        name: Of the selection; None for the one that was written last.
        n: Rows, at most.

    Returns:
        The rows.

    Raises:
        GradsiftError: If there is no such selection or row, or nothing to go by.
    """
    if type(n) is not int or n < 1:
        raise GradsiftError(f"`n` is {n!r}, expected a number of rows, at least 1.")
    if which not in (*_DECISIONS, "borderline"):
        raise GradsiftError(
            f"`which` is {which!r}, expected {', '.join(_DECISIONS)} or borderline."
        )
    run = Run.of(run)
    selection = latest_of(run, whole_selections(run, name))
    table, summary = read_decisions(run, selection)
    if near is not None:
        what, rows = _near(run, table, near, n)
    else:
        by_tokens = str(summary.get("budget")).endswith("tok")
        at, what = _chosen(run, table, which, n, by_tokens=by_tokens)
        rows = table.take(pa.array(at, pa.int64())).to_pylist()
    return Shown(run.folder, selection, what, tuple(_with_places_and_texts(run, rows)))


def _with_places_and_texts(run: Run, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add where rows stand in their files; and what they say, if decisions do not have it."""
    wanted = pa.array([row["instance_id"] for row in rows], pa.string())
    of_pool = run.pool_table.select(["instance_id", "index_in_file"])
    places = of_pool.filter(pc.is_in(of_pool["instance_id"], value_set=wanted)).to_pylist()
    more = {line["instance_id"]: line for line in places}
    if any(row.get("response") is None for row in rows) and (texts := run.stored_texts) is not None:
        texts = texts.select(["instance_id", "prompt", "response"])
        said = texts.filter(pc.is_in(texts["instance_id"], value_set=wanted)).to_pylist()
        more = {line["instance_id"]: line | more[line["instance_id"]] for line in said}
    return [row | more.get(row["instance_id"], {}) for row in rows]


def _chosen(
    run: Run, table: pa.Table, which: Which, n: int, *, by_tokens: bool
) -> tuple[np.ndarray, str]:
    """Return positions of rows in the order in which they are shown, and what they are."""
    of = {
        word: np.flatnonzero(pc.equal(table["decision"], decision).to_numpy())
        for word, decision in _DECISIONS.items()
    }
    rank_N = floats(table, "rank")
    # A selection whose rows are all on a list has no ranks to go by.
    kept = of["kept"][np.argsort(rank_N[of["kept"]], kind="stable")]
    if which in ("kept", "dropped"):
        at = kept if which == "kept" else of["dropped"]
        return at[:n], _which_of(
            len(at), which, n, "the first taken first" if which == "kept" else ""
        )
    worth_N = worth_of(run, table, by_tokens=by_tokens)
    rejected = of["rejected"]
    if worth_N is None:
        if which == "borderline":
            raise GradsiftError("these rows were drawn: none is nearer to being kept than others.")
        return rejected[:n], _which_of(len(rejected), which, n, "")
    # NaN is sorted to the end.
    if which == "rejected":
        at = rejected[np.argsort(worth_N[rejected], kind="stable")]
        return at[:n], _which_of(len(at), which, n, "the farthest from being kept first")
    nearly = rejected[np.argsort(-worth_N[rejected], kind="stable")]
    n_kept = min(len(kept), max(n - len(nearly), (n + 1) // 2))
    at = np.concatenate([kept[len(kept) - n_kept :], nearly[: n - n_kept]])
    return (
        at,
        f"the last {_rows(n_kept)} kept, and the first {_rows(len(at) - n_kept)} not kept",
    )


def _rows(n: int) -> str:
    return "row" if n == 1 else f"{n} rows"


def _which_of(n_rows: int, which: str, n: int, order: str) -> str:
    shown = f"{n} of {n_rows}" if n < n_rows else str(n_rows)
    rows = "row" if n_rows == 1 else "rows"
    return f"{shown} {which} {rows}" + f", {order}" * bool(order and n_rows > 1)


def _near(run: Run, table: pa.Table, near: str, n: int) -> tuple[str, list[dict[str, Any]]]:
    instance_id = str(find_row(run, near)["instance_id"])
    store, (neighbours, _) = run.store, run.content
    ids = [i for i, ok in zip(store.instance_ids, store.finite.tolist(), strict=True) if ok]
    if instance_id not in ids:
        raise GradsiftError(
            f"{near}: was dropped, so it is near to nothing: gradsift explain says why."
        )
    rows, cosines = neighbours.of(ids.index(instance_id))
    order = np.lexsort((rows, -cosines))
    # Itself first, before rows that say the same.
    order = [at for at in order if ids[rows[at]] == instance_id] + [
        at for at in order if ids[rows[at]] != instance_id
    ]
    similarity = {ids[rows[at]]: float(cosines[at]) for at in order[:n]}
    wanted = pa.array(list(similarity), pa.string())
    at = pc.index_in(wanted, value_set=table["instance_id"].combine_chunks())
    shown = [
        {**row, "similarity": similarity[row["instance_id"]]}
        for row in table.take(at.drop_null()).to_pylist()
    ]
    if len(shown) == 1:
        return f"{instance_id} itself", shown
    return f"the {len(shown)} rows nearest to {instance_id} in content, itself first", shown
