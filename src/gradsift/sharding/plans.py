"""The plan of a pool in shards, built from a few words: any process can build it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gradsift.config import SelectionConfig
from gradsift.errors import GradsiftError
from gradsift.run_folder import Run
from gradsift.selection.constraints import parse_budget
from gradsift.sharding.capture_steps import RUN, capture_steps
from gradsift.sharding.graph_steps import graph_steps
from gradsift.sharding.places import Place
from gradsift.sharding.plan import Plan
from gradsift.sharding.selection_steps import selection_steps

SPLIT = "shards/split-00000"


@dataclass(frozen=True)
class PlanSpec:
    """What a plan is built from.

    Attributes:
        root: Folder of the outputs.
        n_shards: Of the capture.
        settings: Of the capture, as config.yaml has them; None where it is done.
        files: Of each shard, for the capture; None where one file is cut.
        n_parts: Of the graph; None for the capture alone.
        selection: Name, budget and settings (as JSON) of a selection; None for the graph alone.
    """

    root: str
    n_shards: int
    settings: dict[str, Any] | None = None
    files: list[list[str]] | None = None
    n_parts: int | None = None
    selection: tuple[str, str, str] | None = None

    def to_json(self) -> str:
        """Return it as a text that another process can be given."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> PlanSpec:
        """Read what `to_json` wrote."""
        said = json.loads(text)
        selection = tuple(said.pop("selection") or ()) or None
        return cls(**said, selection=selection)

    def build(self) -> Plan:
        """Build the plan."""
        if self.settings is not None:
            steps = capture_steps(self.settings, self.n_shards, self.files)
            return Plan(Place(Path(self.root)), steps)
        plan = Plan(Place(Path(self.root)), [])
        runs = [partial(run_of_shard, plan, index) for index in range(self.n_shards)]
        made_of = [partial(plan.place.digest, shard_name(index)) for index in range(self.n_shards)]
        assert self.n_parts is not None
        steps = graph_steps(runs, made_of, self.n_parts)
        if self.selection is not None:
            name, budget, settings = self.selection
            config = SelectionConfig.model_validate_json(settings)
            where = f"selections/{name}"
            steps += selection_steps(config, parse_budget(budget), self.n_parts, runs, where)
        plan.steps.extend(steps)
        return plan


def shard_name(index: int) -> str:
    """Return what the output of a shard's capture is called."""
    return f"shards/shard-{index:05d}"


def run_of_shard(plan: Plan, index: int) -> Run:
    """Return the run of a shard, compared with its digests.

    Raises:
        GradsiftError: If it is not whole, or was changed.
    """
    try:
        folder = plan.place.folder(shard_name(index)) / RUN
        if plan.place.digest(SPLIT) is None:
            return Run(folder)
        # Wherever the pool was moved: they have to be the same rows.
        (rows,) = plan.place.folder(SPLIT).glob(f"rows-{index:05d}.*")
        return Run(folder, data=[str(rows)])
    except GradsiftError as error:
        raise GradsiftError(
            f"{plan.place.root / shard_name(index)}: this shard is not whole, or was "
            "changed. Run the same capture command again, which captures it anew."
        ) from error
