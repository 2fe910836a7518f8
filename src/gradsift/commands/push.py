"""Push: a selection to the hub, as a dataset with a card that says how it was chosen."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from yaml import YAMLError

from gradsift.commands.dataset_card import (
    DECIDED,
    NOT_SHOWN,
    ROWS,
    TAG,
    card_in_place_of,
    card_of,
)
from gradsift.commands.select import SelectResult
from gradsift.commands.selected_rows import dataset_of
from gradsift.config import RowsConfig
from gradsift.decided import (
    AGAIN,
    DECISIONS,
    SELECTIONS,
    SUMMARY,
    read_decisions,
    whole_selections,
)
from gradsift.errors import GradsiftError
from gradsift.files import require_no_link
from gradsift.run_folder import Run
from gradsift.schema import split_settings, takes
from gradsift.seals import DamagedError, sha256_of
from gradsift.store.reader import GradientStore
from gradsift.wording import few, first_line, joined, one_line, short

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD = "README.md"
_NO_LOGIN = (
    "no login to the hub: run `hf auth login`, or set HF_TOKEN (in Python token=… will do, too): "
    "a token that may write, from https://huggingface.co/settings/tokens."
)


@dataclass(frozen=True)
class PushResult:
    """A subset that is on the hub.

    Attributes:
        repo: Its name there.
        url: Where that is.
        n_rows: Rows of the subset.
        private: Whether only its owner sees it.
    """

    repo: str
    url: str
    n_rows: int
    private: bool

    def summary(self) -> dict[str, object]:
        """Return what a program wants to know."""
        return vars(self)

    def text(self) -> str:
        """Return what a person wants to know."""
        who = "private" if self.private else "public"
        return joined(
            [
                f"{self.n_rows} rows, and what was decided on them, in {self.url} ({who})",
                f'next: load_dataset("{self.repo}"), and load_dataset("{self.repo}", "decisions")',
            ]
        )


@takes(RowsConfig)
def push(
    run: str | Path | GradientStore | Run | SelectResult,
    repo: str,
    *,
    name: str | None = None,
    private: bool = True,
    token: str | None = None,
    **settings: Any,
) -> PushResult:
    """Upload a selection to the hub: its rows, the decisions on them, and a card, in one commit.

    What the rows say is uploaded as it is; besides, nothing of this machine: no path, no name.

    Args:
        run: A run folder, its store, or a selection.
        repo: "name" or "owner/name" of a dataset on the hub; it is made where there is none.
        name: Of the selection; None for the one that was given, or the only one.
        private: Whether only its owner sees it.
        token: For the hub; None for the one that `hf auth login` saved, or HF_TOKEN.
        **settings: Where the rows are; see Settings.

    Returns:
        Where it is.

    Raises:
        GradsiftError: If there is no such selection, it was changed, its rows may not be read, or
            the hub refuses it.
    """
    (where,) = split_settings(settings, RowsConfig)
    if not isinstance(repo, str) or not repo:
        raise GradsiftError(f"`repo` is {short(repr(repo), 60)}, expected 'name' or 'owner/name'.")
    api = _api(token)
    if isinstance(run, SelectResult) and name is None:
        name = run.folder.name
    run = Run.of(run, data=where.data)
    folder = _selection(run, name)
    run.require_unchanged_rows()
    decisions, summary = read_decisions(run, folder.name)
    decisions = decisions.filter(pc.field("selected"))
    selected_file = folder / Path(str(summary.get("selected_file"))).name
    _require_written(folder, selected_file, summary)
    rows = dataset_of(selected_file)
    if len(rows) != decisions.num_rows:
        raise GradsiftError(
            f"{folder}: {len(rows)} rows, but {decisions.num_rows} are selected. {AGAIN}"
        )
    decisions = published(decisions, run.rows.source.source_names())
    try:
        card = card_of(summary, run.store.manifest, run.rows.source, decisions.num_columns)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise GradsiftError(
            f"{folder / SUMMARY} does not hold what a selection says ({first_line(error)}). {AGAIN}"
        ) from error
    with tempfile.TemporaryDirectory() as staged:
        root = Path(staged)
        for path in (ROWS, DECIDED):
            (root / path).parent.mkdir()
        with _quietly():
            rows.to_parquet(root / ROWS)
        pq.write_table(decisions, root / DECIDED)
        (root / CARD).write_text(card, encoding="utf-8")
        message = f"{len(rows)} rows chosen by gradsift"
        repo, url, is_private = _uploaded(api, repo, root, private, message)
    return PushResult(repo, url, len(rows), is_private)


def published(decisions: pa.Table, named: Mapping[str | None, str]) -> pa.Table:
    """Return what is uploaded of decisions: no texts, and no names of files.

    Args:
        decisions: On the selected rows.
        named: What the rows of a file are said to come from, where they do not say it.

    Returns:
        The same rows.
    """
    names = decisions.column_names
    if {"source", "file"} <= {*names}:
        # A row that does not say where it comes from is called after its file.
        pairs = zip(decisions["source"].to_pylist(), decisions["file"].to_pylist(), strict=True)
        own = [None if source == named.get(file) else source for source, file in pairs]
        source = pa.array(own, pa.string())
        decisions = decisions.set_column(names.index("source"), "source", source)
    # Their metadata has a digest of the rows that were rejected, too.
    shown = decisions.drop_columns([name for name in NOT_SHOWN if name in names])
    return shown.replace_schema_metadata(None)


@contextmanager
def _quietly() -> Generator[None, None, None]:
    """Without the bar of the package datasets, which is done in a moment."""
    from datasets.utils.logging import (
        disable_progress_bar,
        enable_progress_bar,
        is_progress_bar_enabled,
    )

    shown = is_progress_bar_enabled()
    disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            enable_progress_bar()


def _selection(run: Run, name: str | None) -> Path:
    selections = whole_selections(run, name)
    if len(selections) != 1:
        asked, there = "no selection", "none"
        if selections:
            asked, there = "`name` is missing, and there are several selections", few(selections)
        raise GradsiftError(f"{run.folder}: {asked}; there are: {there}.")
    folder = run.folder / SELECTIONS / selections[0]
    require_no_link(folder)
    return folder


def _require_written(folder: Path, selected_file: Path, summary: dict[str, Any]) -> None:
    """Refuse files other than those that were written, and links: the upload reads no others."""
    if selected_file.name.partition(".")[0] != "selected":
        raise GradsiftError(f"{folder / SUMMARY} does not name the selected rows. {AGAIN}")
    digests = summary.get("files")
    digests = digests if isinstance(digests, dict) else {}
    paths = [folder / DECISIONS, selected_file]
    if selected_file.is_dir():
        paths = [folder / DECISIONS, *sorted(selected_file.rglob("*"))]
    for path in paths:
        require_no_link(path)
        if path.is_dir():
            continue
        try:
            if sha256_of(path) != digests.get(str(path.relative_to(folder))):
                raise DamagedError(path, f"it is not that of {SUMMARY} beside it")
        except DamagedError as error:
            raise GradsiftError(f"{error.found} {AGAIN}") from error


def _api(token: str | None) -> HfApi:
    try:
        from huggingface_hub import HfApi, get_token
    except ImportError:
        raise GradsiftError(
            "push needs the package huggingface_hub: pip install 'gradsift[train]'"
        ) from None
    token = token or get_token()
    if token is None:
        raise GradsiftError(_NO_LOGIN)
    return HfApi(token=token, library_name="gradsift")


def _uploaded(
    api: HfApi, repo: str, folder: Path, private: bool, message: str
) -> tuple[str, str, bool]:
    """Upload a folder in one commit; return the repository's whole name, address, privacy."""
    kind = {"repo_type": "dataset"}
    try:
        made = api.create_repo(repo, private=private, exist_ok=True, **kind)
        found = api.repo_info(made.repo_id, **kind)
        _require_fit(made.repo_id, found, private)
        if CARD in {one.rfilename for one in found.siblings or ()}:
            _keep_what_others_wrote(api, made.repo_id, folder / CARD)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message=message, **kind)
    except GradsiftError:
        raise
    except Exception as error:  # The hub, its name rules and the network each have their own.
        raise GradsiftError(f"the hub: {repo}: {one_line(error)}") from error
    return made.repo_id, str(made), bool(found.private)


def _keep_what_others_wrote(api: HfApi, repo: str, card: Path) -> None:
    """Write into a card what was written on the one that is on the hub; refuse one it hides in."""
    with tempfile.TemporaryDirectory() as there:
        path = api.hf_hub_download(repo, CARD, repo_type="dataset", local_dir=there)
        old = Path(path).read_bytes().decode("utf-8", errors="replace")
    try:
        text = card_in_place_of(old, card.read_text(encoding="utf-8"))
    except (ValueError, TypeError, LookupError, AttributeError, YAMLError) as error:
        raise GradsiftError(
            f"the hub: {repo}: its card ({CARD}) is not as it was pushed ({first_line(error)}), "
            "and would be overwritten. Put gradsift's text back there, and yours below it, or "
            "remove the card there, or give another name."
        ) from error
    card.write_text(text, encoding="utf-8")


def _require_fit(repo: str, found: Any, private: bool) -> None:
    """Refuse a repository that others see though they should not, or that holds something else."""
    if private and not found.private:
        raise GradsiftError(
            f"the hub: {repo} is there already, and public: give another name, make it private "
            "there, or say that it may be public (`private=False`, --public)."
        )
    if found.private and not private:
        raise GradsiftError(
            f"the hub: {repo} is there already, and private: make it public there, or push without "
            "`private=False` (--public)."
        )
    files = {one.rfilename for one in found.siblings or ()} - {".gitattributes"}
    if files and TAG not in (found.tags or ()):
        raise GradsiftError(
            f"the hub: {repo} holds something else ({few(files, 3)}; its card has no tag {TAG}): "
            "give another name."
        )
