"""Gradient store → selection: a file of the user's own rows, and a decision on each."""

from __future__ import annotations

import json
import logging
import re
import shlex
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock

from gradsift.captured_rows import places_of
from gradsift.commands.exporting import EXPORT, exporter_of
from gradsift.commands.selected_rows import dataset_of, records_of
from gradsift.config import (
    ArmsConfig,
    ReplayConfig,
    RowsConfig,
    SelectionConfig,
    SubsetConfig,
    TrustConfig,
)
from gradsift.console import shows_progress
from gradsift.data.containers.rows import write_rows
from gradsift.data.texts import asked_first
from gradsift.decided import CURVE, DECISIONS, SELECTIONS, SUMMARY
from gradsift.errors import GradsiftError
from gradsift.files import make_folder, remove, remove_leftovers, writing
from gradsift.progress import Progress, no_progress
from gradsift.run_folder import Run
from gradsift.schema import migrated, split_settings, takes
from gradsift.seals import (
    DamagedError,
    read_json,
    sha256_of,
    short_sha256,
    write_json,
    write_parquet,
)
from gradsift.selection.answers import Answers, answers_of
from gradsift.selection.audit import (
    attained_lines,
    audit_lines,
    audit_summary,
    audit_warnings,
)
from gradsift.selection.candidates import Candidates, Context, Need
from gradsift.selection.conditions import gate_of, gate_shortage
from gradsift.selection.constraints import Budget, parse_budget
from gradsift.selection.criteria_table import criteria_lines
from gradsift.selection.decisions import (
    counts_of,
    decision_table,
    weight_column,
    with_what_they_say,
)
from gradsift.selection.density import UNIT as DENSITY_UNIT
from gradsift.selection.gate import CannotJudge, too_many_rows
from gradsift.selection.kind import kind_of_rows
from gradsift.selection.selector import Selection, select_rows
from gradsift.selection.strategies.catalogue import STRATEGIES, needs_of, uses_score
from gradsift.store.reader import GradientStore
from gradsift.store.tables import TRAITS
from gradsift.wording import clipped, columns_of_terminal, counted, few, in_line, joined

if TYPE_CHECKING:
    import altair as alt
    import datasets
    import pandas

    from gradsift.commands.push import PushResult

# Changes whenever the same settings would choose other rows: what was made by another is not mixed
# up with it. Of selections that name none it is 1.
ARITHMETIC = 2
# Names that are made up are no longer than that.
_LONGEST_NAME = 80
# Rows of each kind that are shown.
_EXAMPLES = 3
NO_PANDAS = "to_pandas() needs the package pandas: pip install pandas"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectResult:
    """A selection that was written.

    Attributes:
        folder: Where it is.
        selected_file: The selected rows.
        selection: The decisions.
        counts: selected + rejected + dropped = input, and dropped by reason.
        warnings: What ought to worry the user.
        written: Further files, such as those that were exported for trainers.
        ids: Of the selected rows, in the input's order.
        notes: What an export says otherwise than the rows, or not at all.
        report: The page that shows it, if one was written.
        kind: Which kind of rows were kept, in a sentence.
        answers: What their answers are like beside the pool's; None where texts are not known.
        examples: A few kept and rejected rows, drawn: their lines of decisions.parquet.
        details: Whether `text` shows the tables, too.
    """

    folder: Path
    selected_file: Path
    selection: Selection
    counts: dict[str, object]
    warnings: tuple[str, ...]
    written: tuple[Path, ...]
    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()
    report: Path | None = None
    kind: str = ""
    answers: Answers | None = None
    examples: tuple[dict[str, Any], ...] = ()
    details: bool | None = None

    @property
    def run(self) -> Path:
        """The run folder that rows were selected from."""
        return self.folder.parent.parent

    def __repr__(self) -> str:
        """Say what it is, in a line."""
        counts, selection = self.counts, self.selection
        warned = f", {len(self.warnings)} warnings" if self.warnings else ""
        return in_line(
            f"SelectResult({counts['selected']} of {counts['input']} rows, {selection.n_tokens} "
            f"tokens, by {selection.config.strategy}, budget {selection.budget}{warned}, in "
            f"{self.folder})"
        )

    def __len__(self) -> int:
        """Return the number of selected rows."""
        return len(self.ids)

    def records(self) -> list[dict[str, Any]]:
        """Return the selected rows with their own fields, in the input's order.

        Raises:
            GradsiftError: If the file of the selected rows was changed, and one is no row any more.
        """
        return records_of(self.selected_file)

    def to_dataset(self) -> datasets.Dataset:
        """Return the selected rows as a dataset of Hugging Face, with their own fields.

        Parquet keeps its types; of other files a field whose values are of several types is read as
        `datasets.Json`.

        Raises:
            GradsiftError: If the package datasets is missing.
        """
        return dataset_of(self.selected_file)

    def to_pandas(self) -> pandas.DataFrame:
        """Return the selected rows as a DataFrame, with their own fields.

        Raises:
            GradsiftError: If the package pandas is missing.
        """
        try:
            import pandas
        except ImportError:
            raise GradsiftError(NO_PANDAS) from None
        if self.selected_file.suffix == ".parquet":
            return pq.read_table(self.selected_file).to_pandas()
        return pandas.DataFrame(self.records())

    def plot(self, *charts: str) -> alt.VConcatChart:
        """Return the charts of its page, for a notebook or to be saved, as altair draws them.

        Args:
            *charts: Such as "score", "loss", "map", "groups"; none for all.

        Raises:
            GradsiftError: If there is no such chart, or the package altair is missing.
        """
        from gradsift.reporting.notebook import drawn
        from gradsift.reporting.rows import read_rows

        return drawn(read_rows(Run(self.run), self.folder.name), charts)

    def _repr_html_(self) -> str | None:
        from gradsift.reporting.notebook import html_of
        from gradsift.reporting.rows import read_rows

        page = None if self.report is None else str(self.report)
        try:
            return html_of(read_rows(Run(self.run), self.folder.name), page)
        except GradsiftError:  # Moved, removed or damaged since: notebooks show the repr.
            return None

    def push_to_hub(self, repo: str, private: bool = True, token: str | None = None) -> PushResult:
        """Upload it to the hub as a dataset; see `gradsift.push`.

        Args:
            repo: "name" or "owner/name" of a dataset on the hub.
            private: Whether only its owner sees it.
            token: For the hub; None for the one that `hf auth login` saved, or HF_TOKEN.

        Returns:
            Where it is.

        Raises:
            GradsiftError: As for `push`.
        """
        from gradsift.commands.push import push

        return push(self, repo, private=private, token=token)

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        selection = self.selection
        return {
            "selection": str(self.folder),
            "selected_file": str(self.selected_file),
            "strategy": selection.config.strategy,
            "budget": str(selection.budget),
            "preset": selection.config.preset,
            "expected_rows": selection.resolved_budget.expected_rows,
            "n_tokens": selection.n_tokens,
            # What each term of the objective was divided by, and how much of that was gained.
            "scale": None if selection.scale is None else asdict(selection.scale),
            "attained": selection.attained,
            **self.counts,
            "criteria": {name: asdict(criteria) for name, criteria in selection.criteria.items()},
            "density": {
                "method": selection.signal.density.method,
                "error": selection.signal.density.error,
                "n_checked": selection.signal.density.n_checked,
                "unit": DENSITY_UNIT,
            },
            "density_cut_share": selection.cut_share,
            "score_length_correlation": selection.audit.length_correlation,
            "score_step_correlation": selection.step_correlation,
            "audit": audit_summary(selection.audit),
            "gate": None if selection.gate is None else selection.gate.summary(),
            "kind": self.kind,
            "answers": None if self.answers is None else self.answers.summary(),
            "warnings": list(self.warnings),
            "also_written": [str(path) for path in self.written],
            "export_notes": list(self.notes),
            "report": None if self.report is None else str(self.report),
        }

    def text(self) -> str:
        """Return what a person wants to know: what was kept, and what to do next."""
        return joined([*self.lines(), *self._next()])

    def lines(self) -> list[str]:
        """Return what was kept, in words."""
        lines = [
            f"{_counts_line(self.counts)}; {self.selection.n_tokens} tokens in "
            f"{self.selected_file}",
            *([f"{self.kind[0].upper()}{self.kind[1:]}."] if self.kind else []),
            *(f"warning: {line}" for line in self.warnings),
            *(f"note: {line}" for line in self.notes),
            *map(_example_line, self.examples),
        ]
        if self.details:
            lines += ["", *self._tables()]
        written = (path.relative_to(self.folder) for path in self.written)
        names = "".join(f", {path}" for path in written)
        page = "" if self.report is None else f"{self.report.name} (open it in a browser), "
        return [*lines, f"beside it: {page}{DECISIONS} (every row, and why), {SUMMARY}{names}"]

    def _tables(self) -> list[str]:
        selection = self.selection
        lines = criteria_lines(selection.criteria, selection.config)
        if selection.attained is not None:
            lines += ["", *attained_lines(selection.attained)]
        more = [] if self.answers is None else self.answers.pairs()
        lines += ["", *audit_lines(selection.audit, more)]
        if selection.gate is not None:
            lines += ["", *selection.gate.lines()]
        return [*lines, ""]

    def _next(self) -> list[str]:
        return [
            f"{'next:' if at == 0 else '':6}gradsift {command}  ({what})"
            for at, (command, what) in enumerate(self._commands())
        ]

    def _commands(self) -> list[tuple[str, str]]:
        """Return what to do next: commands, and what each is for."""
        run, config = shlex.quote(str(self.run)), self.selection.config
        budget, changed = shlex.quote(str(self.selection.budget)), _changed(config)
        name = shlex.quote(self.folder.name)
        usual = ArmsConfig().arms
        arms = [] if config.strategy in usual else ["--arms", ",".join([*usual, config.strategy])]
        commands = [
            (f"show {run} --name {name}", "the rows; --rejected: the others"),
            (f"report {run} --name {name}", "a page to browse all of them"),
        ]
        if not config.gate:
            commands.append((f"audit {run}", "do answers fit their prompts? not asked so far"))
        train = " ".join([f"train {run} --arm {config.strategy} --budget {budget}", *changed])
        compare = " ".join([f"compare {run} --test HELD-OUT --budgets {budget}", *arms, *changed])
        commands += [
            (train, "on these rows"),
            (compare, "did it learn more, forget less, and beat random?"),
        ]
        more = [
            *([] if self.details else [("--details", "the criteria")]),
            *([] if self.written else [("--export trl", "a trainer's own form")]),
        ]
        if more:
            usual_name = self.folder.name == name_of(plain_settings(self.selection.budget, config))
            words = [
                f"select {run} --budget {budget}",
                *([] if config.strategy == "grads" else [f"--strategy {config.strategy}"]),
                *changed,
                *([] if usual_name else [f"--name {name}"]),
                *(option for option, _ in more),
            ]
            commands.append((" ".join(words), " and ".join(what for _, what in more)))
        return commands


def _changed(config: SelectionConfig) -> list[str]:
    """Return the options that say how a selection differs from the usual one."""
    options = []
    for name, field in SelectionConfig.model_fields.items():
        value = getattr(config, name)
        if name in ("strategy", "preset") or value == field.get_default(call_default_factory=True):
            continue
        if isinstance(value, Path) or name in ("keep", "drop", "anchor", "target"):
            value = Path(value).resolve()
        if isinstance(value, dict):
            options += [f"--{name} {shlex.quote(f'{k}={one}')}" for k, one in value.items()]
        else:
            said = ",".join(map(str, value)) or "none" if isinstance(value, tuple) else value
            options.append(f"--set {shlex.quote(f'{name}={said}')}")
    return options


def _example_line(row: dict[str, Any]) -> str:
    word = "kept" if row["selected"] else "rejected"
    width = columns_of_terminal()
    head = f"{word:9} {clipped(row['instance_id'], 24)}: "
    if row["response"] is None:
        return head + clipped(row["reason"], width - len(head))
    half = (width - len(head) - 3) // 2
    prompt = clipped(asked_first(row["prompt"]), half)
    arrow = f"{prompt} → " if prompt else ""
    return f"{head}{arrow}{clipped(row['response'], width - len(head) - len(arrow))}"


@takes(SubsetConfig, ReplayConfig, RowsConfig, TrustConfig)
@shows_progress
def select(
    run: str | Path | GradientStore | Run | SelectResult,
    *,
    budget: str | int | float,
    progress: Progress | bool = True,
    **settings: Any,
) -> SelectResult:
    """Select rows of a captured run and write them, in seconds and without torch.

    Args:
        run: A run folder, its store, or another selection of it.
        budget: Of the usable rows: "50%" or 0.5, 500 (rows), "20000tok" (tokens), "auto".
        progress: Of what the model writes for an export with `replay` self: True shows a bar
            (lines where stderr is no terminal), False nothing; a function is called with rows done,
            rows in all, tokens done, tokens in all.
        **settings: How to select; see Settings.

    Returns:
        What was selected and written.

    Raises:
        GradsiftError: If a setting does not fit, or the input changed since the capture.
    """
    config, replaying, rows, trust = split_settings(
        settings, SubsetConfig, ReplayConfig, RowsConfig, TrustConfig
    )
    parsed = parse_budget(budget)
    needs_of(config)  # What is no strategy or score is found out before anything is read.
    return select_run(
        Run.of(run, data=rows.data, trust_remote_code=trust.trust_remote_code),
        parsed,
        config,
        name=config.name,
        weights=config.weights,
        export=config.export,
        report=config.report,
        replaying=replaying,
        details=config.details,
        progress=progress,
    )


def select_run(
    run: Run,
    budget: Budget,
    config: SelectionConfig,
    *,
    name: str | None,
    weights: bool,
    details: bool,
    export: Sequence[str] = (),
    report: bool | None = None,
    replaying: ReplayConfig | None = None,
    progress: Progress = no_progress,
) -> SelectResult:
    """Select rows of a captured run and write them.

    Args:
        run: The run.
        budget: How much to select.
        config: How to select.
        name: Of the selection's folder; made from strategy and budget if None.
        weights: Whether decisions.parquet gets a `weight` for each selected row: its gradient
            score divided by the mean over the subset.
        details: Whether the result's text shows the tables, too.
        export: Trainers in whose own form the rows are written too.
        report: Whether a page is written that shows the selection; None for pools of a size that
            takes no time.
        replaying: Which rows of replay the exports get beside them.
        progress: Of what the model writes for them.

    Returns:
        What was written.

    Raises:
        GradsiftError: As for `select`, or if a selection of that name was made with other settings.
    """
    # What an export needs is missed before anything is written.
    exporter = exporter_of(run, export, replaying or ReplayConfig(), progress)
    run.require_unchanged_rows()
    settings = plain_settings(budget, config)
    folder = _folder(run.folder / SELECTIONS, settings, name)
    context, table = run.context(config), run.pool_table
    pool = run.candidates(needs_of(config))
    selection = select_rows(pool, budget, config, context)
    decisions = with_what_they_say(
        decision_table(table, selection), pool, context.cluster_N, table, run.texts
    )
    answers = _answers(run.texts, pool, selection.rows_S)
    counts, warnings = counts_of(table, decisions), _warnings(run, selection, config, context)
    if answers is not None:
        warnings += answers.warnings()
    kept = table.filter(
        pc.is_in(table["instance_id"], value_set=pa.array(selection.ids, pa.string()))
    )
    if weights:
        decisions = decisions.append_column("weight", weight_column(decisions))
    made_with = {"settings": settings, "capture": run.store.manifest.identity}
    remove_leftovers(run.folder)
    places = places_of(run.folder, run.rows.source, kept)
    with _locked(folder):
        # Another process may have been faster.
        _folder(run.folder / SELECTIONS, settings, name)
        selected_file = write_rows(run.rows.source, places, folder)
        write_parquet(folder / DECISIONS, decisions)
        written = []
        if selection.curve_S is not None:
            gains = pa.array(selection.curve_S, pa.float64())
            write_parquet(folder / CURVE, pa.table({"marginal_gain": gains}))
            written.append(folder / CURVE)
        if exporter is None or (folder / EXPORT).is_symlink():
            remove(folder / EXPORT)
        result = SelectResult(
            folder,
            selected_file,
            selection,
            counts,
            tuple(warnings),
            tuple(written),
            tuple(kept["instance_id"].to_pylist()),
            kind=kind_of_rows(pool, selection.rows_S, answers),
            answers=answers,
            examples=_examples(decisions, config.seed),
            details=details,
        )
        # Before the exports: if one is refused, what is there is a whole selection, with the
        # export that it had.
        earlier = [folder / EXPORT] if (folder / EXPORT).exists() else []
        _save_summary(replace(result, written=(*written, *earlier)), made_with)
        result = _with_page(run, result, decisions, made_with, report)
        if exporter is None:
            return result
        if weights:
            weighted = decisions["weight"].filter(decisions["selected"])
            kept = kept.append_column("weight", weighted)
        try:
            files, notes = exporter.write(kept, folder / EXPORT, config.seed)
        except GradsiftError as error:
            logger.info(_counts_line(counts))
            for line in warnings:
                logger.warning(line)
            raise GradsiftError(
                f"{error} The selection itself, "
                f"{'with the export that it had' if earlier else 'without the export'}, is in "
                f"{folder}."
            ) from error
        result = replace(result, written=(*written, *files), notes=notes)
        _save_summary(result, made_with)
    return result


def _with_page(
    run: Run,
    result: SelectResult,
    decisions: pa.Table,
    made_with: dict[str, object],
    wanted: bool | None,
) -> SelectResult:
    """Write the page that shows a selection, if it is wanted; else remove an earlier one."""
    # Loaded only here: most of what selects has no page.
    from gradsift.commands.report import REPORT, write_report
    from gradsift.reporting.page import MOST_WHOLE
    from gradsift.reporting.rows import rows_of

    if not (decisions.num_rows <= MOST_WHOLE if wanted is None else wanted):
        remove(result.folder / REPORT)
        return result
    rows = rows_of(run, result.folder.name, decisions, {**result.summary(), **made_with})
    return replace(result, report=write_report(run, rows).path)


def _answers(texts: pa.Table, pool: Candidates, rows_S: np.ndarray) -> Answers | None:
    """Compare the answers of a subset with those of its pool; None where texts are not known."""
    if texts["response"].null_count == len(texts):
        return None
    at = pc.index_in(pa.array(pool.ids, pa.string()), texts["instance_id"].combine_chunks())
    of_rows = texts.select([*TRAITS]).take(at)
    # A row that has an answer says whether it has a phrase of the list.
    of_rows = of_rows.set_column(
        of_rows.column_names.index("boilerplate"),
        "boilerplate",
        pc.if_else(pc.is_valid(of_rows["near_empty"]), pc.is_valid(of_rows["boilerplate"]), None),
    )
    traits = {
        name: pc.fill_null(of_rows[name].cast(pa.float64()), np.nan).to_numpy() for name in TRAITS
    }
    selected_N = np.zeros(len(pool), dtype=bool)
    selected_N[rows_S] = True
    return answers_of(traits, selected_N)


def _examples(decisions: pa.Table, seed: int) -> tuple[dict[str, Any], ...]:
    """Return a few kept and a few rejected rows, drawn with the seed."""
    generator, rows = np.random.default_rng([seed, 2]), []
    for decision in ("selected", "rejected"):
        at = np.flatnonzero(pc.equal(decisions["decision"], decision).to_numpy())
        drawn = np.sort(generator.choice(at, size=min(_EXAMPLES, len(at)), replace=False))
        rows += decisions.take(pa.array(drawn, pa.int64())).to_pylist()
    return tuple(rows)


def _save_summary(result: SelectResult, made_with: dict[str, object]) -> None:
    """Write what was selected, with the digest of each file that was written."""
    files = [result.selected_file, result.folder / DECISIONS, *result.written]
    files = [one for path in files for one in (sorted(path.rglob("*")) or [path])]
    files = [path for path in files if path.is_file() and not path.is_symlink()]
    digests = {str(path.relative_to(result.folder)): sha256_of(path) for path in files}
    # The page is written after it, and may be again.
    summary = {key: value for key, value in result.summary().items() if key != "report"}
    write_json(result.folder / SUMMARY, {**summary, **made_with, "files": digests})


@contextmanager
def _locked(folder: Path) -> Generator[None, None, None]:
    """Let one process at a time write a selection."""
    make_folder(folder)
    path = folder.with_name(f".{folder.name}.lock")
    lock = FileLock(path)
    with writing(path):
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _warnings(
    run: Run, selection: Selection, config: SelectionConfig, context: Context
) -> list[str]:
    self_check = run.store.manifest.about.get("self_check") or {}
    return _gate_warnings(run, selection, config, context) + audit_warnings(
        selection.audit,
        # Its method alone says nothing: a loop of the user's own may have run without a check.
        self_checked=bool(self_check.get("n_rows")),
        non_finite_share=float((~run.store.finite).mean()),
        cut_share=selection.cut_share,
        uses_score=uses_score(config),
        detrend=config.detrend,
    )


def _gate_warnings(
    run: Run, selection: Selection, config: SelectionConfig, context: Context
) -> list[str]:
    gate, rows_S = selection.gate, np.sort(selection.rows_S)
    if gate is not None:
        pool = run.candidates(needs_of(config))
        named = [pool.ids[row] for row in rows_S if gate.named_N[row]]
        rows = counted(len(named), "row")
        kept = f"the gate names {rows} that `keep` keeps all the same: {few(named, 5)}"
        shortage = gate_shortage(pool, selection.budget, config, context, rows_S)
        return [kept, *shortage] if named else shortage
    idle = []
    if config.gate_threshold != SelectionConfig().gate_threshold:
        idle.append("`gate_threshold` does nothing without `gate`: nothing is dropped")
    # What is known anyway.
    if not run.has_reference_losses:
        return idle
    try:
        gate = gate_of(run.candidates([Need.REFERENCE_LOSSES]), config)
    except CannotJudge:
        return idle
    return idle + too_many_rows(gate, len(rows_S))


def _counts_line(counts: dict[str, object]) -> str:
    """Return what became of the input's rows."""
    dropped = ", ".join(f"{k} {v}" for k, v in counts["dropped_by_reason"].items())
    return (
        f"{counts['selected']} selected + {counts['rejected']} rejected + "
        f"{counts['dropped']} dropped = {counts['input']} rows of the input"
        + (f" (dropped: {dropped})" if dropped else "")
    )


def _folder(selections: Path, settings: dict[str, object], name: str | None) -> Path:
    if name is None:
        name = name_of(settings)
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise GradsiftError(f"`name` is {name!r}, expected letters, digits, '-', '_' and '.'.")
    folder = selections / name
    summary = folder / SUMMARY
    if summary.exists():
        try:
            before = migrated(read_json(summary).get("settings") or {})
        except DamagedError as error:
            raise GradsiftError(
                f"{error.found} Remove that folder, or give this selection another `name`."
            ) from error
        # What a setting did not exist for was made with its default.
        before = plain_settings(None, SelectionConfig()) | {"arithmetic": 1} | before
        strategy = STRATEGIES[str(settings["strategy"])]
        if not strategy.uses_score and Need.REFERENCE_LOSSES not in strategy.needs:
            before["arithmetic"] = ARITHMETIC  # Which is of no consequence.
        different = [key for key in settings if before.get(key) != settings[key]]
        if different == ["arithmetic"]:
            raise GradsiftError(
                f"{folder} holds a selection with these settings by an earlier gradsift, which "
                "computed scores and gains otherwise and chose other rows. Give this one another "
                "`name`, or remove that folder."
            )
        if different:
            named = ", ".join(key for key in different if key != "arithmetic")
            raise GradsiftError(
                f"{folder} holds a selection with other settings ({named}). Give this one another "
                "`name`."
            )
    return folder


def name_of(settings: dict[str, object]) -> str:
    """Return what a selection is called after: strategy, budget, and what is not the default."""
    parts = [str(settings["strategy"]), str(settings["budget"]).replace("%", "pct")]
    defaults = plain_settings(None, SelectionConfig())
    for key, value in settings.items():
        if key in ("strategy", "budget") or value == defaults[key]:
            continue
        words = [key] if value is True else ["no", key] if value is False else [key, str(value)]
        plain = all(re.fullmatch(r"[\w.-]{1,30}", word) for word in words)
        # Lists and paths are told apart, not told.
        parts += words if plain else [key, short_sha256(json.dumps(value, sort_keys=True), 8)]
    name = "-".join(parts)
    return name if len(name) <= _LONGEST_NAME else f"{'-'.join(parts[:2])}-{short_sha256(name, 8)}"


def plain_settings(budget: Budget | None, config: SelectionConfig) -> dict[str, object]:
    """Return what a selection was made with, as selection.json has it."""
    # Not what its settings were called together.
    fields = SelectionConfig.model_fields.keys() - {"preset"}
    values = config.model_dump(mode="json", include=fields)
    return {"budget": str(budget), "arithmetic": ARITHMETIC, **values}
