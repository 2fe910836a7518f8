"""The plan of a sharded pool, from what a few words say: any process can build it again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gradsift.config import SelectionConfig
from gradsift.selection.constraints import parse_budget
from gradsift.sharding.graph_steps import graph_steps
from gradsift.sharding.plan import Plan
from gradsift.sharding.selection_steps import selection_steps


@dataclass(frozen=True)
class PlanSpec:
    """What a plan is built from.

    Attributes:
        root: Path or URL of the outputs.
        shards: Run folders.
        parts: Of the graph.
        selection: Name, budget and settings (as JSON) of a selection; None for the graph alone.
    """

    root: str
    shards: Sequence[str]
    parts: int
    selection: tuple[str, str, str] | None = None

    def to_json(self) -> str:
        """Return it as a text that another process can be given."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> PlanSpec:
        """Read what `to_json` wrote."""
        said = json.loads(text)
        selection = tuple(said.pop("selection") or ()) or None
        return cls(**said, selection=selection)

    def build(self) -> Plan:
        """Build the plan."""
        steps = graph_steps([*map(Path, self.shards)], self.parts)
        if self.selection is not None:
            name, budget, settings = self.selection
            config = SelectionConfig.model_validate_json(settings)
            steps += selection_steps(config, parse_budget(budget), self.parts, name)
        return Plan(self.root, steps)
