"""Which files of a folder hold its rows: shards, perhaps in splits, as hub datasets have them."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsift.data.containers.streams import uncompressed_name
from gradsift.errors import GradsiftError
from gradsift.wording import few
from gradsift.yaml_files import parse_yaml

# What shards are numbered with: train-00000-of-00002.
SHARD = re.compile(r"-\d{5}-of-\d{5}(?=$|[-.])")
_WORDS = "train|training|test|testing|valid|validation|val|dev|eval|evaluation|held-?_?out|holdout"
_SPLITS = re.compile(rf"(?:^|(?<=[-_.]))({_WORDS})(?=$|[-_.])", re.I)
# What numbers the files of one split: train_1, train-part2, train-1-of-3.
_NUMBERS = re.compile(r"(?:[-_.](?:part|shard|of)?[-_.]?\d+|[-_.]of)*")
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
        data_config: Which, where the README says that there are several: the files that it lists,
            or a folder of that name.

    Raises:
        GradsiftError: If there is none, or if it has to be said which split.
    """
    configs = _configurations(folder)
    if data_config is None and len(configs) > 1:
        raise GradsiftError(
            f"{folder}: has the configurations {few(configs)}; name one with `data_config`."
        )
    chosen = next(iter(configs)) if data_config is None and configs else data_config
    where, listed = folder, None
    if chosen in configs and not isinstance(configs[chosen], Path):
        listed = _listed(folder, chosen, configs[chosen], is_data, split)
    elif chosen in configs and (data_config is not None or configs[chosen].name != chosen):
        where = configs[chosen]
    elif data_config is not None:
        where = _configuration(folder, data_config)
    inside = sorted(path for path in _below(where, set()) if path.is_file())
    files = [path for path in inside if is_data(path) and path.name not in _ABOUT]
    if not files:
        found = f"found {few([p.name for p in inside], 5)}" if inside else "it is empty"
        raise GradsiftError(f"{where}: a folder without files of rows; {found}.")
    by_split: dict[str | None, list[Path]] = listed or {}
    for path in files if listed is None else ():
        by_split.setdefault(_split_of(path.relative_to(where)), []).append(path)
    read = _different(_of_split(where, by_split, split))
    others = [str(path.relative_to(where)) for path in inside if path not in set(read)]
    if others:
        logger.info(f"{where}: not read as rows: {few(others, 5)}")
    return read


def _different(files: Sequence[Path]) -> list[Path]:
    """Leave out files that are links to others of them, and say what may be there twice."""
    first: dict[Path, Path] = {}
    for path in sorted(files, key=lambda path: (path.is_symlink(), path)):
        first.setdefault(path.resolve(), path)
    read = sorted(first.values())
    packed = [
        path for path in read if path.suffix in (".gz", ".zst") and path.with_suffix("") in read
    ]
    if packed:
        names = few([path.name for path in packed], 5)
        logger.warning(f"{names}: read, and so are the files of these names without suffix")
    return read


def _of_split(
    folder: Path, by_split: Mapping[str | None, Sequence[Path]], split: str | None
) -> list[Path]:
    named = [name for name in by_split if name is not None]
    if not named:
        if split is not None:
            raise GradsiftError(f"{folder}: has no splits; leave out `split: {split}`.")
        return sorted(by_split[None])
    # What does not say that it is held out is trained on.
    files: dict[str, list[Path]] = {}
    for name, paths in by_split.items():
        files.setdefault("train" if name is None else name, []).extend(paths)
    splits = ", ".join(sorted(files))
    if split is None:
        if len(files) > 1:
            raise GradsiftError(
                f"{folder}: has the splits {splits}; name one with `split`, or give the files "
                "themselves."
            )
        return sorted(*files.values())
    wanted = split if split in files else _ALIKE.get(split, split)
    if wanted not in files:
        raise GradsiftError(
            f"{folder}: has no split {split!r} but {splits}; name one with `split`, or give the "
            "files themselves."
        )
    return sorted(files[wanted])


def _split_of(path: Path) -> str | None:
    """Return the split that a path names: train/x.jsonl, gsm8k_test.csv, train-00000-of-00002."""
    for part in (*path.parts[:-1], uncompressed_name(path).stem):
        stem = SHARD.sub("", part)
        if match := _SPLITS.search(stem):
            rest = stem[match.end() :]
            # train_sft and train_gen are splits of these names.
            whole = match.start() > 0 or _NUMBERS.fullmatch(rest)
            word = (match[0] if whole else stem).lower()
            return _ALIKE.get(word, word)
    return None


def _listed(
    folder: Path,
    config: str,
    data_files: Any,
    is_data: Callable[[Path], bool],
    split: str | None,
) -> dict[str | None, list[Path]]:
    """Return the files that a README lists for a configuration, by split.

    Those of other splits than the wanted one need not be there.
    """
    entries = data_files if isinstance(data_files, list) else [data_files]
    if isinstance(data_files, dict) and "path" not in data_files:
        entries = [{"split": split, "path": path} for split, path in data_files.items()]
    by_split: dict[str | None, list[Path]] = {}
    for entry in entries:
        one = entry if isinstance(entry, dict) else {"split": "train", "path": entry}
        patterns = one.get("path") if isinstance(one.get("path"), list) else [one.get("path")]
        for pattern in patterns:
            found = []
            if isinstance(pattern, str) and "://" not in pattern and ".." not in pattern:
                matching = glob.glob(f"{glob.escape(str(folder))}/{pattern}", recursive=True)
                found = [p for p in map(Path, sorted(matching)) if p.is_file() and is_data(p)]
            if not found and split in (None, one.get("split") or "train"):
                raise GradsiftError(
                    f"{folder}: its README.md lists {pattern!r} for the configuration {config!r}, "
                    "and there are no such files here. Give the files themselves."
                )
            if found:
                by_split.setdefault(str(one.get("split") or "train"), []).extend(found)
    if not by_split:
        raise GradsiftError(
            f"{folder}: its README.md lists no files of split {split!r} that are here for the "
            f"configuration {config!r}."
        )
    return by_split


def _configurations(folder: Path) -> dict[str, Any]:
    """Return the configurations that a README names: the files listed for each, or its folder."""
    readme = folder / "README.md"
    try:
        # Not a pipe, which would be waited for.
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        front = text.split("---", 2)[1] if text.startswith("---") else ""
        about = parse_yaml(front, str(readme))
    except (OSError, UnicodeDecodeError):
        return {}
    except GradsiftError as error:
        logger.info(f"{error} What it says of configurations is not known.")
        return {}
    entries = about.get("configs") if isinstance(about, dict) else None
    configs = {}
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict):
            continue
        name = str(entry.get("config_name", "default"))
        inside = folder / str(entry.get("data_dir") or name)
        if not Path(os.path.abspath(inside)).is_relative_to(os.path.abspath(folder)):
            raise GradsiftError(
                f"{readme}: names {str(inside)!r} for the configuration {name!r}, which lies "
                "outside of the folder. Give the files themselves."
            )
        if entry.get("data_files") or inside.is_dir():
            configs[name] = entry.get("data_files") or inside
    return configs


def _configuration(folder: Path, data_config: str) -> Path:
    inside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if data_config not in inside:
        raise GradsiftError(
            f"{folder}: has no configuration {data_config!r}, as there is no folder of that name; "
            f"there are: {few([name for name in inside if name[0] != '.']) or 'none'}."
        )
    return folder / data_config


def is_run(folder: Path) -> bool:
    """Return whether a run was written there."""
    return all((folder / name).exists() for name in _OF_A_RUN)


def _below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Return what is in a folder and below it, but for what is hidden and for run folders."""
    # A link may lead back up.
    if folder.resolve() in seen:
        return
    seen.add(folder.resolve())
    for path in sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path)):
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif not is_run(path):
            yield from _below(path, seen)
