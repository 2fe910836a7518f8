"""A run folder: its settings, rows, model, records, candidates; each loaded once."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Sequence
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from gradsift.captured_rows import CapturedRows, kept_in
from gradsift.config import ReadingConfig, RunConfig, SelectionConfig, without_reports
from gradsift.config_files import (
    CONFIG_NAME,
    named,
    read_yaml,
    run_config,
    warn_of_code,
    with_absolute_files,
)
from gradsift.data.chat_templates import require_template
from gradsift.data.containers.sources import (
    is_pattern,
)
from gradsift.data.id_lists import read_ids
from gradsift.data.pool import Pool, read_pool
from gradsift.data.texts import lines_of_texts
from gradsift.errors import GradsiftError
from gradsift.files import write_text
from gradsift.schema import migrated
from gradsift.seals import DamagedError, is_sealed, require_sealed_lines, sealed_lines
from gradsift.selection import neighbours as graph
from gradsift.selection.candidates import Candidates, Context, Need, Reference
from gradsift.selection.content import content_vectors, find_clusters
from gradsift.selection.neighbours import Neighbours, find_neighbours
from gradsift.selection.strategies.catalogue import needs_of
from gradsift.store.manifest import load_manifest
from gradsift.store.reader import GradientStore, read_store
from gradsift.store.tables import (
    POOL_NAME,
    TEXTS_SCHEMA,
    LossesMadeFrom,
    ReferenceLossesMissing,
    digest_of_pool,
    read_losses,
    read_neighbours,
    read_pool_table,
    read_texts,
    texts_table,
    write_neighbours,
    write_texts,
)
from gradsift.terms import SHARDS
from gradsift.training.settings.known import refused_of_lora, refused_of_sft
from gradsift.wording import few, in_line, short

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from gradsift.data.tokenization import Instance, Instances
    from gradsift.training.model import ModelSource

logger = logging.getLogger(__name__)

UNKNOWN = "unknown"
MENDS_CONFIG = (
    "Put the old one back, or run the same capture command again, which writes it anew; for other "
    "settings capture into a new folder."
)
# Changes whenever the graph or the clusters are made otherwise.
_MADE_BY = f"3 {graph.N_NEIGHBOURS} {graph.COMPLETE_ROWS} {graph.EXACT_ROWS}"


class Run:
    """A run folder, and what was loaded from it so far.

    Everything is loaded when it is first asked for. Nothing but the model, its tokenizer and the
    instances needs torch.

    Attributes:
        folder: The run folder.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        store: GradientStore | None = None,
        config: RunConfig | None = None,
        pool: Pool | None = None,
        data: str | Sequence[str] | None = None,
        trust_remote_code: bool | None = None,
    ):
        """Point to a folder; nothing is loaded yet.

        Args:
            folder: The run folder.
            store: Its gradient store, if it is in memory already.
            config: Its settings, if they are known.
            pool: Its rows, if they are in memory already.
            data: Where its rows are, if they were moved or captured by somebody else.
            trust_remote_code: Whether code that comes with its model may run; what the folder says
                of that does not count.
        """
        self.folder = Path(folder).resolve()
        if (self.folder / SHARDS).is_file():
            raise GradsiftError(
                f"{self.folder}: a pool in shards, which select and explain know. Everything else "
                "is done with one of its shards, such as shards/shard-00000/run in it."
            )
        # What is here is not loaded again: cached properties live in the instance's dictionary.
        known = {"store": store, "config": config, "pool": pool}
        vars(self).update({name: value for name, value in known.items() if value is not None})
        # Settings that are in memory are the user's own: only a file may be anybody's.
        self._is_own = config is not None
        self._data, self._trusts_code = data, bool(trust_remote_code)
        self._is_introduced = False
        self._candidates: dict[frozenset[Need], Candidates] = {}

    def __repr__(self) -> str:
        """Say what it is, in a line; nothing is loaded, and nothing refused."""
        try:
            manifest = load_manifest(self.folder)
        except GradsiftError:
            return in_line(f"Run({self.folder}, damaged)")
        if manifest is None:
            return in_line(f"Run({self.folder}, not captured yet)")
        state = "captured" if manifest.complete else "to be captured, not finished"
        return in_line(f"Run({self.folder}, {manifest.n_instances or 'some'} instances {state})")

    @classmethod
    def of(
        cls,
        run: Any,
        *,
        data: str | Sequence[str] | None = None,
        trust_remote_code: bool | None = None,
    ) -> Run:
        """Return a run, whatever it is given as: folder, store, a selection of it, or itself.

        Raises:
            GradsiftError: If it is nothing of these.
        """
        more: dict[str, Any] = {"data": data, "trust_remote_code": trust_remote_code}
        if isinstance(run, Run):
            return cls(run.folder, **more) if any(more.values()) else run
        if isinstance(run, GradientStore):
            return cls(run.folder, store=run, **more)
        # What select and run return names the run that it is of.
        run = getattr(run, "run", run)
        if not isinstance(run, str | Path):
            raise GradsiftError(
                f"the run is {short(repr(run), 80)}, expected a run folder, its store, or what "
                "select returns."
            )
        return cls(run, **more)

    @classmethod
    def new(cls, model: str, pool: Any, **settings: object) -> Run:
        """Return a run that is to be captured from a pool, or from what load_pool takes.

        Raises:
            GradsiftError: For settings or rows that cannot be.
        """
        if not isinstance(pool, Pool):
            pool = read_pool(pool, ReadingConfig())
        values = {"data": pool.source.name, **pool.read_as, "model": model, **settings}
        if pool.held is not None and settings.get("out") is not None:
            values["data"] = str(Path(str(settings["out"])).resolve() / pool.held.file_name)
        config = run_config(values)
        return cls(config.out, config=config, pool=pool)

    @cached_property
    def store(self) -> GradientStore:
        """The gradients."""
        return read_store(self.folder)

    @cached_property
    def config(self) -> RunConfig:
        """The settings of the capture, those of an earlier gradsift under today's names."""
        path = self.folder / CONFIG_NAME
        # Not a pipe, which would be waited for.
        if not path.is_file():
            raise GradsiftError(
                f"{self.folder}: there is no {CONFIG_NAME} that says how its rows and its model "
                "are loaded; only runs of gradsift capture can be passed over again."
            )
        try:
            require_sealed_lines(path)
        except DamagedError as error:
            raise GradsiftError(f"{error.found} {MENDS_CONFIG}") from error
        values = migrated(read_yaml(path))
        # Before there was this setting, rows with the id of another were dropped.
        values.setdefault("duplicate_ids", "drop")
        for key, refused in (("sft", refused_of_sft), ("lora", refused_of_lora)):
            if isinstance(values.get(key), dict):
                values[key] = _without_refused(values[key], key, refused(values[key]), path)
                if key == "sft":  # Whoever made the folder does not say where this user sends.
                    values[key] = without_reports(values[key])
        if values.get("trust_remote_code") and not self._trusts_code:
            warn_of_code(path)
        values["trust_remote_code"] = self._trusts_code
        config = run_config(values, str(path))
        self._require_its_own(path, config)
        return config.model_copy(update={"data": kept_in(self.folder, config.data)})

    def _require_its_own(self, path: Path, config: RunConfig) -> None:
        """Refuse the settings of another run."""
        manifest = load_manifest(self.folder)
        if manifest is None or not is_sealed(path):
            return
        captured = manifest.identity
        sft = without_reports(with_absolute_files(captured.get("sft") or {}))
        captured = captured | {"sft": sft}
        said = json.loads(json.dumps(config.identity, default=str))
        for key, value in said.items():
            if captured.get(key) != value:
                raise GradsiftError(
                    f"{path}: says {key} {value!r}, but the run was captured with "
                    f"{captured.get(key)!r}. {MENDS_CONFIG}"
                )

    def introduce(self) -> None:
        """Say which model and which rows the folder names, before either is loaded.

        Raises:
            GradsiftError: If the rows are not the user's own and not named by the user, or not
                those that were captured.
        """
        if self._is_own or self._is_introduced:
            return
        self._is_introduced, config = True, self.config
        model = repr(config.model) + " (a folder here)" * Path(config.model).exists()
        more = named({"revision": config.revision, "sft": config.sft})
        rows = f"rows {self.rows.names}" + f", {more}" * bool(more)
        logger.info(f"{self.folder}: model {model}, {rows}")
        self.require_unchanged_rows()

    def save_config(self) -> None:
        """Write the settings into the folder; `gradsift run --config` takes them."""
        config = self.config.model_copy(update={"template_date": self.template_date})
        settings = config.model_dump(mode="json") | {"sft": without_reports(config.sft)}
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        write_text(self.folder / CONFIG_NAME, sealed_lines(text))

    @cached_property
    def pool(self) -> Pool:
        """The rows."""
        return self.read_rows()

    @cached_property
    def pool_table(self) -> pa.Table:
        """What became of each row: pool.parquet."""
        table, manifest = read_pool_table(self.folder), load_manifest(self.folder)
        # An earlier gradsift noted no digest.
        expected = None if manifest is None else manifest.about.get("pool_sha256")
        if expected is not None and digest_of_pool(table) != expected:
            raise GradsiftError(
                f"{self.folder / POOL_NAME}: is that of another run. Put the old one back, or run "
                "the same capture command again, which writes it anew."
            )
        return table

    @property
    def stored_texts(self) -> pa.Table | None:
        """The texts that are in the folder; None of a run of before, until it is selected from."""
        saved = read_texts(self.folder, self._pool_digest)
        fits = saved is not None and saved["instance_id"].equals(self.pool_table["instance_id"])
        return saved if fits else None

    @property
    def _pool_digest(self) -> str:
        # An earlier gradsift noted none; what is noted was compared with the table.
        noted = self.store.manifest.about.get("pool_sha256")
        return str(noted or digest_of_pool(self.pool_table))

    @cached_property
    def texts(self) -> pa.Table:
        """What people read of each row of the pool table: TEXTS_SCHEMA.

        Kept in the run folder; of runs of before it is made from their rows. Texts are null where
        these are not known or not there any more, which is said.
        """
        table, saved = self.pool_table, self.stored_texts
        if saved is not None:
            return saved
        try:
            texts = _texts_of(table, self.pool)
        except GradsiftError as error:
            logger.warning(f"the rows' texts are left out, as they cannot be read: {error}")
            nothing = [pa.nulls(table.num_rows, one.type) for one in [*TEXTS_SCHEMA][1:]]
            return pa.table([table["instance_id"], *nothing], schema=TEXTS_SCHEMA)
        try:
            write_texts(self.folder, self._pool_digest, texts)
        except GradsiftError as error:
            logger.info(f"the rows' texts are not kept, and read anew next time: {error}")
        return texts

    def read_rows(self, data: Any = None, split: str | None = None) -> Pool:
        """Load the rows of the run, or others that are written like them.

        Args:
            data: Other rows (or where they are), perhaps without ids and sources; None for the
                run's own.
            split: Of the other rows, if they come in several.
        """
        if data is None and not self._is_own:
            return self.rows.read(self.config)
        config = self.config
        reading: dict[str, Any] = {"split": config.split if data is None else split}
        # A name that is no file may be one in `dataset_info`, or of the hub.
        a_name = isinstance(data, str) and not (Path(data).exists() or is_pattern(data))
        if data is not None and not a_name:
            reading |= {"dataset_info": None, "data_config": None}
        return read_pool(
            config.data if data is None else data,
            config.model_copy(update=reading),
            labels_needed=data is None,
        )

    @cached_property
    def rows(self) -> CapturedRows:
        """Where the rows of the capture are."""
        return CapturedRows(self.folder, self.store.manifest, named=self._data, is_own=self._is_own)

    def require_unchanged_rows(self) -> None:
        """Refuse rows that are not those of the capture, before any of them is read.

        Raises:
            GradsiftError: If the folder alone names them, or if they changed or are not there any
                more.
        """
        has_settings = self._is_own or (self.folder / CONFIG_NAME).exists()
        self.rows.require_unchanged(self.config if has_settings else None)

    @cached_property
    def model(self) -> ModelSource:
        """Which model; not loaded."""
        # Heavy, and only needed here.
        from gradsift.training.model import load_tokenizer, source_of

        source = source_of(self.config)
        if self.config.chat_template is not None:
            tokenizer = load_tokenizer(source, self.config.sft)
            require_template(tokenizer, self.config.chat_template)
        return source

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self._tokenizer_as_loaded[0]

    @cached_property
    def _tokenizer_as_loaded(self) -> tuple[PreTrainedTokenizerBase, str]:
        from gradsift.training.model import load_tokenizer, tokenizer_fingerprint

        tokenizer = load_tokenizer(self.model, self.config.sft)
        # Now: a trainer may set its padding token.
        return tokenizer, tokenizer_fingerprint(tokenizer)

    @cached_property
    def model_config(self) -> PretrainedConfig:
        """The model's configuration."""
        from gradsift.training.model import load_config

        return load_config(self.model)

    @cached_property
    def template_date(self) -> date | None:
        """The day that the chat template writes as today; None if it writes none."""
        from gradsift.data.rendering import asks_for_the_day

        if not asks_for_the_day(self.tokenizer):
            return None
        given, saved = self.config.template_date, self.folder / CONFIG_NAME
        if given is None and saved.exists():
            given = run_config(migrated(read_yaml(saved)), str(saved)).template_date
        return given or date.today()

    def tokenized(self, pool: Pool | None = None) -> Instances:
        """Tokenize the pool as the capture does: instances, and why other rows are none.

        Args:
            pool: Other rows, to be tokenized alike.
        """
        from gradsift.data.tokenization import build_instances

        rows = (self.pool if pool is None else pool).rows
        return build_instances(
            [(row.instance_id, row.example) for row in rows if row.example is not None],
            self.tokenizer,
            max_length=self.config.max_length,
            truncation=self.config.truncation,
            vocab_size=self.model_config.get_text_config().vocab_size,
            template_kwargs=self.config.chat_template_kwargs,
            template_date=self.template_date,
        )

    @cached_property
    def instances(self) -> Sequence[Instance]:
        """The instances that were captured, in the pool's order, tokenized again.

        Raises:
            GradsiftError: If rows or model are not those of the capture.
        """
        self._require_same_model()
        instances = self.tokenized().items
        table = self.pool_table.select(["instance_id", "content_hash"])
        captured = dict(zip(*table.to_pydict().values(), strict=True))
        # Ids of the user's own do not change with the text.
        others = {
            row.instance_id
            for row in self.pool.rows
            if row.content_hash != captured.get(row.instance_id)
        }
        others |= {item.instance_id for item in instances} ^ set(self.store.instance_ids)
        if not others:
            return instances
        if self.pool.sha256 == self.store.about("data_sha256"):
            raise GradsiftError(
                f"{self.folder}: {len(others)} of its rows are read or rendered otherwise by this "
                f"version of gradsift than by the one that captured them: {few(others, 5)}. "
                "Capture again into a new folder."
            )
        raise GradsiftError(
            f"{self.pool.source.name}: its rows are not those that {self.folder} was captured "
            "from. Put the old file back, or capture again."
        )

    def _require_same_model(self) -> None:
        from gradsift.training.model import model_fingerprint

        identity, source = self.store.manifest.identity, self.model
        fingerprint = model_fingerprint(source, self.model_config)
        if fingerprint != identity.get("model"):
            raise GradsiftError(
                f"{self.folder}: was captured with model {identity.get('model')}, {source.name} is "
                f"{fingerprint}. Put the old one back, or capture again."
            )
        if self._tokenizer_as_loaded[1] != identity.get("tokenizer"):
            raise GradsiftError(
                f"{self.folder}: was captured with another tokenizer or chat template than "
                f"{source.name} has now. Put the old one back, or capture again."
            )
        for name in ("dtype", "load_in"):
            captured, now = identity.get(name), getattr(source, name)
            if captured != now:
                raise GradsiftError(
                    f"{self.folder}: was captured with {name} {captured}, its config.yaml now says "
                    f"{now}. Put the old one back, or capture again."
                )

    @cached_property
    def content(self) -> tuple[Neighbours, np.ndarray]:
        """Neighbours and clusters of the instances with finite gradients, in the order of the ids.

        Kept in the run folder where finding them takes a while.
        """
        made_from = f"{_MADE_BY} {self.store.fingerprint()}"
        saved = read_neighbours(self.folder, made_from)
        finite = self.store.finite
        if saved is not None and len(saved[-1]) == finite.sum():
            return Neighbours(*saved[:-1]), saved[-1]
        vectors_ND = content_vectors(self.store.content_ND[finite], self.store.step[finite])
        neighbours, cluster_N = find_neighbours(vectors_ND), find_clusters(vectors_ND)
        if len(neighbours) > graph.COMPLETE_ROWS:
            try:
                write_neighbours(
                    self.folder,
                    made_from,
                    neighbours.offsets,
                    neighbours.rows_E,
                    neighbours.cosines_E,
                    neighbours.floor_N,
                    cluster_N,
                )
            except GradsiftError as error:
                logger.info(f"near rows are not kept, and found anew next time: {error}")
        return neighbours, cluster_N

    @property
    def losses_made_from(self) -> LossesMadeFrom:
        """Which model and instances the reference losses are of."""
        identity = self.store.manifest.identity
        return LossesMadeFrom(str(identity.get("model")), str(identity.get("instances")))

    @property
    def has_reference_losses(self) -> bool:
        """Whether the reference losses of all instances were computed."""
        try:
            read_losses(self.folder, self.store.instance_ids, self.losses_made_from)
        except ReferenceLossesMissing:
            return False
        return True

    def candidates(self, needs: Iterable[Need] = ()) -> Candidates:
        """Return the instances with finite gradients, in the order of their ids.

        Args:
            needs: What is read beyond the statistics.

        Raises:
            GradsiftError: If there is none, or reference losses are asked for and not there.
        """
        needs = frozenset(needs) & {
            Need.FEATURES,
            Need.SKETCHES,
            Need.CLUSTERS,
            Need.REFERENCE_LOSSES,
        }
        if needs not in self._candidates:
            self._candidates[needs] = self._read_candidates(needs)
        return self._candidates[needs]

    def _read_candidates(self, needs: frozenset[Need]) -> Candidates:
        store, table, finite = self.store, self.pool_table, self.store.finite
        ids = [i for i, ok in zip(store.instance_ids, finite.tolist(), strict=True) if ok]
        at = dict(zip(table["instance_id"].to_pylist(), range(table.num_rows), strict=True))
        if not at.keys() >= {*store.instance_ids} or len(at) != table.num_rows:
            raise self._other_pool_table("does not hold each row of the store once")
        lines = table.take(pa.array([at[i] for i in ids], pa.int64()))
        if lines["n_tokens"].null_count:
            raise self._other_pool_table("has no n_tokens for some rows of the store")
        return Candidates(
            ids=ids,
            statistics={
                layer: {name: values[finite] for name, values in by_name.items()}
                for layer, by_name in store.statistics.items()
            },
            n_tokens=lines["n_tokens"].to_numpy().astype(np.int64),
            n_response_tokens=store.n_response_tokens[finite],
            step=store.step[finite],
            loss=store.loss[finite],
            el2n=store.el2n[finite],
            source=_names(lines["source"]),
            language=_names(lines["language"]),
            features_ND=store.content_ND[finite] if Need.FEATURES in needs else None,
            sketches=(
                {layer: sketch[finite] for layer, sketch in store.sketches.items()}
                if Need.SKETCHES in needs
                else {}
            ),
            reference_losses=(
                read_losses(self.folder, ids, self.losses_made_from)
                if Need.REFERENCE_LOSSES in needs
                else {}
            ),
            cluster_N=self.content[1] if Need.CLUSTERS in needs else None,
        )

    def _other_pool_table(self, what: str) -> GradsiftError:
        path = self.folder / POOL_NAME
        return GradsiftError(
            f"{DamagedError(path, what).found} Put the old one back, or run its capture command "
            "again, which writes it anew."
        )

    def context(self, config: SelectionConfig, needs: Iterable[Need] | None = None) -> Context:
        """Return what a selection uses beside the candidates.

        Args:
            config: Of the selection: its reference runs and lists of ids.
            needs: What the references are needed for; None for what this selection needs.

        Raises:
            GradsiftError: If a reference is needed and not given, or does not fit, or a list is
                unreadable.
        """
        needs = set(needs_of(config) if needs is None else needs)
        folders = {Need.ANCHOR: config.anchor, Need.TARGET: config.target}
        references = {
            need: self._reference(folder, need) for need, folder in folders.items() if need in needs
        }
        keep, drop = (
            read_ids(path, name, self.id_column, self._shared_ids) if path is not None else []
            for name, path in (("keep", config.keep), ("drop", config.drop))
        )
        return Context(*self.content, references, keep, drop)

    @property
    def id_column(self) -> str:
        """The field that its rows' ids were read from; what a loop recorded has no settings."""
        known = "config" in vars(self) or (self.folder / CONFIG_NAME).exists()
        return (self.config.id_column if known else None) or "id"

    @cached_property
    def _shared_ids(self) -> set[str]:
        """Ids that several rows have in the data."""
        ids = self.pool_table["instance_id"].to_pylist()
        if not any(re.search(r"#\d+$", one) for one in ids):
            return set()
        return {str(row.own_id) for row in self.pool.rows if row.is_renamed}

    def _reference(self, folder: str | None, need: Need) -> Reference:
        if folder is None:
            raise GradsiftError(
                f"this strategy needs {need.value}: `{need.name.lower()}`, a run folder of such "
                "rows, captured with the same model (gradsift capture ROWS --model MODEL --set "
                "warmup_fraction=0 --out RUN)."
            )
        other = self.comparable_run(folder)
        store = other.store
        return Reference(
            {layer: sketch[store.finite] for layer, sketch in store.sketches.items()},
            store.content_ND[store.finite],
            store.step[store.finite],
            other.candidates().source,
        )

    def comparable_run(self, folder: str) -> Run:
        """Return another run whose gradients can be compared with those of this one.

        Raises:
            GradsiftError: If they cannot.
        """
        other_run = Run(folder)
        other = other_run.store
        for key in ("model", "sketch_size", "seed"):
            mine, its = (s.manifest.identity.get(key) for s in (self.store, other))
            if mine != its:
                raise GradsiftError(
                    f"{folder}: was captured with {key} {its!r}, but {self.folder} with {mine!r}: "
                    f"their gradients cannot be compared. Capture it with {key} {mine!r}."
                )
        if not other.finite.any():
            raise GradsiftError(f"{folder}: none of its gradients is finite.")
        return other_run


def _without_refused(
    settings: dict[str, Any], of: str, refused: dict[str, str], path: Path
) -> dict[str, Any]:
    """Leave out what an earlier gradsift took, mostly without doing anything, and tell."""
    if refused:
        reasons = "; ".join(f"{key}: {reason}" for key, reason in refused.items())
        logger.warning(
            f"{path}: {of} settings that an earlier gradsift took, and that are left out now: "
            f"{reasons}"
        )
    return {key: value for key, value in settings.items() if key not in refused}


def _texts_of(table: pa.Table, pool: Pool) -> pa.Table:
    """Return the texts of the rows of a pool table, null where a row says something else now."""
    languages = dict(
        zip(table["instance_id"].to_pylist(), table["language"].to_pylist(), strict=True)
    )
    spoken = [languages.get(row.instance_id) for row in pool.rows]
    texts = texts_table(lines_of_texts(pool.rows, spoken))
    ids, hashes = (table[name].combine_chunks() for name in ("instance_id", "content_hash"))
    at = pc.index_in(ids, value_set=texts["instance_id"].combine_chunks())
    now = pa.array([row.content_hash for row in pool.rows], pa.string()).take(at)
    at = pc.if_else(pc.fill_null(pc.equal(now, hashes), False), at, pa.scalar(None, at.type))
    return texts.take(at).set_column(0, TEXTS_SCHEMA.field(0), ids)


def _names(column: pa.ChunkedArray) -> list[str] | None:
    if column.null_count == len(column):
        return None
    return [UNKNOWN if name is None else name for name in column.to_pylist()]
