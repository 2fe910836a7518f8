"""The card of a subset on the hub: what it is, how it was chosen, and nothing of this machine."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping
from typing import Any

import yaml

from gradsift.config import SelectionConfig
from gradsift.data.containers.sources import KEPT_LINES, KEPT_TABLE, Source
from gradsift.schema import extra_of, migrated
from gradsift.seals import short_sha256
from gradsift.selection.constraints import parse_budget
from gradsift.selection.strategies.catalogue import STRATEGIES
from gradsift.store.manifest import Manifest
from gradsift.version import __version__
from gradsift.wording import in_line, one_line

TAG = "gradsift"
ROWS, DECIDED = "data/train.parquet", "decisions/train.parquet"
# What of a decision is not published: what rows say, and where they lay.
NOT_SHOWN = ("prompt", "response", "file")
# Settings that name a file of whoever selected.
FILES = ("keep", "drop", "anchor", "target")
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
# What stands between these is gradsift's; the rest of a card is whoever's it is, and stays.
BEGIN = "<!-- gradsift writes this anew with each push, down to its other mark: "
END = "<!-- end of what gradsift writes -->"
LICENCE = """## Licence

Not stated here: it is that of the rows, which gradsift does not know. Whoever published this may
add it: what stands outside of gradsift's text, and metadata such as `license`, stay when it is
pushed again.
"""
_CARD = re.compile(r"---\n(?P<metadata>.*?)\n---[ ]*\n(?P<text>.*)", re.DOTALL)
_PATH = re.compile(r"(?<![\w:/.<])(~|\.{1,2}|[A-Za-z]:)?([/\\][^\s/\\'\"`,;:()<>]+)+[/\\]?")


def card_of(summary: Mapping[str, Any], manifest: Manifest, source: Source, n_columns: int) -> str:
    """Return the card, README.md, as the hub reads it.

    Args:
        summary: Of the selection: selection.json.
        manifest: Of the run.
        source: Where the rows are from.
        n_columns: Of the decisions.

    Returns:
        YAML for the hub, and Markdown for people.

    Raises:
        TypeError, ValueError, LookupError: If a summary does not hold what a selection says.
    """
    from huggingface_hub import DatasetCardData

    n_rows, n_input = int(summary["selected"]), int(summary["input"])
    budget = str(parse_budget(str(summary["settings"]["budget"])))
    config = _config_of(summary)
    strategy = STRATEGIES[config.strategy]
    data = DatasetCardData(
        tags=[TAG],
        size_categories=[next((size for n, size in SIZES if n_rows < n), "n>1M")],
        configs=[
            {
                "config_name": name,
                **({"default": True} if name == "default" else {}),
                "data_files": [{"split": "train", "path": path}],
            }
            for name, path in (("default", ROWS), ("decisions", DECIDED))
        ],
    )
    warnings = [f"* {_text(without_paths(str(line)))}" for line in summary["warnings"]]
    facts = {
        "rows": f"{n_rows} selected of {n_input}; {int(summary['rejected'])} rejected, "
        f"{int(summary['dropped'])} dropped",
        "tokens": str(int(summary["n_tokens"])),
        "of": _where(source),
        "model": _model(manifest),
        "strategy": f"`{config.strategy}`",
        "budget": f"`{budget}`",
        "seed": str(config.seed),
        "made by": f"gradsift {__version__}",
    }
    own = "\n".join(
        [
            "# A subset chosen by gradsift",
            "",
            f"Rows of a supervised fine-tuning set, chosen by strategy `{config.strategy}`: "
            f"{strategy.summary}."
            + (
                f" Each row's numbers were recorded {_recorded(manifest)}." * strategy.needs_capture
            ),
            "",
            "| | |",
            "| --- | --- |",
            *(f"| {name} | {_text(fact)} |" for name, fact in facts.items()),
            "",
            "```",
            f"gradsift select RUN {_options(config, budget)}",
            "```",
            "",
            "* `default`: the rows as they are in the set that they were chosen from, with all of "
            "their own fields.",
            f"* `decisions`: for each of them, in the same order, {n_columns} columns that say "
            "why it was kept: its rank, its scores, the nearest other row, and a reason in words. "
            "What the rejected rows were is not here.",
            "",
            *(["## Warnings", "", *warnings, ""] if warnings else []),
        ]
    )
    begin = f"{BEGIN}{short_sha256(own)} -->"
    return f"---\n{data.to_yaml()}\n---\n\n{begin}\n{own}\n{END}\n\n{LICENCE}"


def card_in_place_of(old: str, new: str) -> str:
    """Return a new card with what somebody wrote on the old one: metadata, and text beside ours.

    Args:
        old: The card that is on the hub.
        new: From `card_of`.

    Raises:
        ValueError: If what to keep cannot be told.
    """
    from huggingface_hub import DatasetCardData

    there, before, own, after = _parts_of(old)
    mine, _, _, _ = _parts_of(new)
    if own is None:
        raise ValueError("the text between gradsift's two marks was changed, or a mark is gone")
    named = {one["config_name"] for one in mine["configs"]}
    others = [one for one in there.get("configs") or () if one.get("config_name") not in named]
    tags = [tag for tag in there.get("tags") or () if tag != TAG]
    merged = {**there, **mine, "tags": [TAG, *tags], "configs": [*mine["configs"], *others]}
    marked = new[new.index(BEGIN) : new.index(END)]
    return f"---\n{DatasetCardData(**merged).to_yaml()}\n---\n{before}{marked}{END}{after}"


def _parts_of(card: str) -> tuple[dict[str, Any], str, str | None, str]:
    """Return metadata, and the text before, between and after the marks; None if not as written."""
    found = _CARD.fullmatch(card.replace("\r\n", "\n"))
    metadata = None if found is None else yaml.safe_load(found["metadata"])
    if not isinstance(metadata, dict):
        raise ValueError("it does not begin with metadata between two lines of ---")
    before, mark, rest = found["text"].partition(BEGIN)
    own, end, after = rest.partition(f"\n{END}")
    digest, _, own = own.partition(" -->\n")
    is_whole = bool(mark and end) and short_sha256(own) == digest
    return metadata, before, own if is_whole else None, after


def _where(source: Source) -> str:
    if source.container == "hub":
        return f"`{source.name}` on the hub"
    if source.path.name in (KEPT_TABLE, KEPT_LINES):
        return "rows from memory"
    return "local files" if source.parts else "a local file or folder"


def _recorded(manifest: Manifest) -> str:
    identity = manifest.identity
    if "loop" in identity:
        return "in a training of one's own, the first time the row was trained on"
    if identity.get("record_at") == "after":
        return "after a preliminary training"
    return "in one epoch of training"


def _config_of(summary: Mapping[str, Any]) -> SelectionConfig:
    settings = migrated(summary["settings"])
    known = SelectionConfig.model_fields.keys() & settings.keys()
    return SelectionConfig.model_validate({name: settings[name] for name in known})


def _options(config: SelectionConfig, budget: str) -> str:
    """Return what to give the command for the same selection, but for files."""
    options = ["--budget", budget]
    for name, field in SelectionConfig.model_fields.items():
        value = getattr(config, name)
        if value == field.get_default(call_default_factory=True) or name == "preset":
            continue
        flag = f"--{name.replace('_', '-')}"
        if name in FILES:
            value = "FILE"
        elif value is True and extra_of(field, "option"):
            options.append(flag)
            continue
        elif isinstance(value, dict):
            options += [part for key, one in value.items() for part in (flag, f"{key}={one}")]
            continue
        elif isinstance(value, tuple):
            value = ",".join(map(str, value)) or "none"
        is_option = extra_of(field, "option")
        options += [flag, str(value)] if is_option else ["--set", f"{name}={value}"]
    return in_line(shlex.join(options)).replace("`", "'")


def _model(manifest: Manifest) -> str:
    name, what = str(manifest.about.get("model")), str(manifest.identity.get("model"))
    if what.startswith("commit") or name == "demo" or "loop" in manifest.identity:
        return f"`{name}` ({what})"
    return f"a local one ({what})"


def without_paths(text: str) -> str:
    """Return a text without what looks like a place on a disk.

    Args:
        text: Such as a warning.

    Returns:
        The same, with `…` in its place.
    """
    return _PATH.sub("…", text)


def _text(value: str) -> str:
    """Return a text as Markdown shows it, whatever is in it; code in backticks stays code."""
    return html.escape(in_line(one_line(value)), quote=False).replace("|", "\\|")
