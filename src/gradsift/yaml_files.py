"""YAML of anybody's, read safely: plain data, and no more of it than settings ever are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from gradsift.errors import GradsiftError
from gradsift.wording import one_line

# Far above what settings, task files and the front matter of dataset cards come to.
MOST_BYTES = 2_000_000
DEEPEST = 100
_TOO_LONG = f"more than {MOST_BYTES // 1_000_000} MB of YAML"
# Values, with those that an alias stands for counted wherever it stands.
MOST_VALUES = 100_000
# Longer ones are text: to read them as numbers takes the square of their length.
LONGEST_NUMBER = 400


def read_yaml_file(path: Path) -> Any:
    """Return what a YAML file holds; None if it is empty.

    Raises:
        GradsiftError: If it cannot be read, is no YAML or too much of it; names file and line.
    """
    try:
        with path.open("rb") as file:
            # Not its size on the disk, which a pipe does not tell.
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise GradsiftError(f"{path}: not read: {_TOO_LONG}.")
        return parse_yaml(content.decode(), str(path))
    except OSError as error:
        raise GradsiftError(f"{path}: cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise GradsiftError(f"{path}: not YAML: {error}") from None


def parse_yaml(text: str, where: str) -> Any:
    """Return what a YAML text says: dicts, lists, texts, numbers, dates, truth values and None.

    Args:
        text: One document.
        where: What messages call it.

    Raises:
        GradsiftError: If it is no YAML, or too much of it.
    """
    if len(text) > MOST_BYTES:
        raise GradsiftError(f"{where}: not read: {_TOO_LONG}.")
    try:
        return yaml.load(text, Loader=_SafeLoader)
    except _NotTakenError as error:
        raise GradsiftError(f"{where}: {error}") from None
    except yaml.composer.ComposerError as error:
        if "single document" not in str(error):
            raise GradsiftError(f"{where}: not YAML: {one_line(error)}") from None
        line = error.problem_mark.line + 1
        raise GradsiftError(
            f"{where}: a second YAML document begins in line {line} (---): put the settings of "
            "both into one, or into files of their own."
        ) from None
    except yaml.YAMLError as error:
        raise GradsiftError(f"{where}: not YAML: {one_line(error)}") from None


class _NotTakenError(ValueError):
    """YAML that is not taken, though PyYAML would."""


class _SafeLoader(yaml.SafeLoader):
    """The safe loader, as people mean it, and within limits.

    1e-4 is a number (YAML 1.1 wants 1.0e-4), what looks like a date or number and cannot be one is
    text, and a key that a mapping has twice is a mistake (YAML forbids it, PyYAML takes the last).
    """

    def __init__(self, stream: Any):
        super().__init__(stream)
        self._depth = self._deepest = self._n_values = 0
        # Node that is read → values that it stands for, and levels.
        self._size: dict[yaml.Node, tuple[int, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        """Read a node, unless it goes over the limits."""
        line, is_alias = self.peek_event().start_mark.line + 1, self.check_event(yaml.AliasEvent)
        before, outside = self._n_values, self._deepest
        self._n_values, self._depth = before + 1, self._depth + 1
        self._deepest = self._depth
        self._require_within(line)
        node = super().compose_node(parent, index)
        if is_alias:
            if node not in self._size:
                raise _NotTakenError(f"line {line}: an alias stands for what it stands in.")
            n_values, n_levels = self._size[node]
            self._n_values = before + n_values
            self._deepest = self._depth - 1 + n_levels
            self._require_within(line)
        else:
            self._size[node] = self._n_values - before, self._deepest - self._depth + 1
        self._depth, self._deepest = self._depth - 1, max(outside, self._deepest)
        return node

    def fetch_flow_collection_start(self, token_class: type[yaml.Token]) -> None:
        """Scan a bracket; the scanner runs ahead of what is composed, slower with each level."""
        if self.flow_level >= DEEPEST:
            self._deepest = self.flow_level + 1
            self._require_within(self.line + 1)
        super().fetch_flow_collection_start(token_class)

    def _require_within(self, line: int) -> None:
        if self._deepest > DEEPEST:
            raise _NotTakenError(f"line {line}: nested more than {DEEPEST} levels deep.")
        if self._n_values > MOST_VALUES:
            raise _NotTakenError(
                f"line {line}: more than {MOST_VALUES} values, with its aliases written out."
            )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Build a mapping, unless it has a key twice."""
        lines: dict[object, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag.endswith(":merge"):
                continue
            key = self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise _NotTakenError(
                    f"{key_node.value} is said twice, in line {lines[key]} and in line {line}: "
                    "take one out."
                )
            lines[key] = line
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build what a node says."""
        is_scalar = isinstance(node, yaml.ScalarNode)
        if is_scalar and len(node.value) > LONGEST_NUMBER and node.tag.endswith((":int", ":float")):
            return node.value
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError):
            if not is_scalar:
                raise
            self.recursive_objects.pop(node, None)
            return node.value


_SafeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)
