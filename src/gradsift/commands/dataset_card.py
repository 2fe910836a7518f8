"""The card of a subset on the hub: what it is, how it was chosen, and nothing of this machine."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Mapping
from typing import Any

from gradsift.config import SelectionConfig
from gradsift.data.containers.sources import Source
from gradsift.schema import extra_of, migrated
from gradsift.selection.constraints import parse_budget
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
        "of": f"`{source.name}` on the hub" if source.container == "hub" else "a local file",
        "model": _model(manifest),
        "strategy": f"`{config.strategy}`",
        "budget": f"`{budget}`",
        "seed": str(config.seed),
        "made by": f"gradsift {__version__}",
    }
    return "\n".join(
        [
            f"---\n{data.to_yaml()}\n---",
            "",
            "# A subset chosen by gradsift",
            "",
            "Rows of a supervised fine-tuning set, chosen by each row's gradient in one epoch of "
            "training.",
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
            "## Licence",
            "",
            "Not stated here: it is that of the rows, which gradsift does not know. Whoever "
            "published this may add it.",
            "",
        ]
    )


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
