"""Which files of a folder hold its rows: shards, perhaps in splits, as hub datasets have them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from gradsift.errors import GradsiftError
from gradsift.utils import few

# What shards are numbered with: train-00000-of-00002.
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=$|[-.])")
_SPLITS = re.compile(
    r"(train|training|test|testing|valid|validation|val|dev|eval|evaluation)(?=$|[-_.])", re.I
)
# Data by their suffix, which tell of a dataset and hold no rows.
_ABOUT = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
_ABOUT += ("package.json", "config.json", "metadata.json")
# What a run folder holds that was made among the shards.
_OF_A_RUN = ("manifest.json", "pool.parquet")
_ALIKE = {"training": "train", "testing": "test", "evaluation": "eval"}
_ALIKE |= dict.fromkeys(("valid", "val"), "validation")

logger = logging.getLogger(__name__)


def data_files(
    folder: Path, is_data: Callable[[Path], bool], split: str | None, data_config: str | None
) -> list[Path]:
    """Return the files with rows in a folder and those below it, sorted.

    Hidden files, and what tells of a dataset (README, dataset_info.json), are none.

    Args:
        folder: Of shards, or a copy of a hub dataset.
        is_data: Whether a file's suffix is one of data.
        split: Which, where there are several.
        data_config: Which, where the README says that there are several: a folder of that name.

    Raises:
        GradsiftError: If there is none, or if it has to be said which split.
    """
    where = folder if data_config is None else _configuration(folder, data_config)
    if data_config is None and len(names := _configurations(folder)) > 1:
        raise GradsiftError(
            f"{folder}: has the configurations {few(names)}; name one with `data_config`."
        )
    inside = sorted(path for path in _below(where) if path.is_file())
    files = [path for path in inside if is_data(path) and path.name not in _ABOUT]
    if not files:
        found = f"found {few([p.name for p in inside], 5)}" if inside else "it is empty"
        raise GradsiftError(f"{where}: a folder without files of rows; {found}.")
    others = [str(path.relative_to(where)) for path in inside if path not in set(files)]
    if others:
        logger.info(f"{where}: not read as rows: {few(others, 5)}")
    by_split: dict[str | None, list[Path]] = {}
    for path in files:
        by_split.setdefault(_split_of(path.relative_to(where)), []).append(path)
    return _of_split(where, by_split, split)


def _of_split(
    folder: Path, by_split: Mapping[str | None, Sequence[Path]], split: str | None
) -> list[Path]:
    names = [name for name in by_split if name is not None]
    if split is None:
        if len(names) > 1:
            raise GradsiftError(
                f"{folder}: has the splits {', '.join(names)}; name one with `split`."
            )
        return sorted(path for paths in by_split.values() for path in paths)
    if not names:
        raise GradsiftError(f"{folder}: has no splits; leave out `split: {split}`.")
    wanted = _ALIKE.get(split, split)
    if wanted not in by_split:
        raise GradsiftError(
            f"{folder}: has no split {split!r} but {', '.join(names)}; name one with `split`."
        )
    return sorted(by_split[wanted])


def _split_of(path: Path) -> str | None:
    """Return the split that a path names: train/x.jsonl, train-00000-of-00002.jsonl, test.csv."""
    for part in (*path.parts[:-1], path.name):
        if match := _SPLITS.match(part):
            shard = SHARD.search(part)
            # train_sft-00000-of-00004 is a split of that name.
            word = (part[: shard.start()] if shard else match[0]).lower()
            return _ALIKE.get(word, word)
    return None


def _configurations(folder: Path) -> list[str]:
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
        about = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return []
    entries = about.get("configs") if isinstance(about, dict) else None
    names = [str(entry.get("config_name")) for entry in entries or () if isinstance(entry, dict)]
    return [name for name in names if (folder / name).is_dir()]


def _configuration(folder: Path, data_config: str) -> Path:
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if data_config not in inside:
        raise GradsiftError(
            f"{folder}: has no configuration {data_config!r}, as there is no folder of that name; "
            f"there are: {few([name for name in inside if name[0] != '.']) or 'none'}."
        )
    return folder / data_config


def _below(folder: Path) -> Iterator[Path]:
    """Return what is in a folder and below it, but for what is hidden and for run folders."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif not all((path / name).exists() for name in _OF_A_RUN):
            yield from _below(path)
