"""gradsift picks the part of an SFT set that is worth training on, by each row's gradient.

Names are loaded when first used: `import gradsift` is quick, and only `capture` needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradsift.version import __version__

if TYPE_CHECKING:
    from gradsift.commands.explain import explain_row as explain
    from gradsift.commands.compare import compare
    from gradsift.commands.train import train
    from gradsift.config import SelectionConfig
    from gradsift.data.pool import Pool, load_pool
    from gradsift.recording.recording import record
    from gradsift.run import capture, check, losses
    from gradsift.selecting import select, stability, strategies
    from gradsift.store.reader import GradientStore, read_store

_WHERE = {
    "GradientStore": ("gradsift.store.reader", "GradientStore"),
    "Pool": ("gradsift.data.pool", "Pool"),
    "capture": ("gradsift.run", "capture"),
    "compare": ("gradsift.commands.compare", "compare"),
    "check": ("gradsift.run", "check"),
    "explain": ("gradsift.commands.explain", "explain_row"),
    "load_pool": ("gradsift.data.pool", "load_pool"),
    "record": ("gradsift.recording.recording", "record"),
    "read_store": ("gradsift.store.reader", "read_store"),
    "losses": ("gradsift.run", "losses"),
    "select": ("gradsift.selecting", "select"),
    "SelectionConfig": ("gradsift.config", "SelectionConfig"),
    "stability": ("gradsift.selecting", "stability"),
    "train": ("gradsift.commands.train", "train"),
    "strategies": ("gradsift.selecting", "strategies"),
}

__all__ = [
    "GradientStore",
    "Pool",
    "SelectionConfig",
    "__version__",
    "capture",
    "check",
    "compare",
    "explain",
    "load_pool",
    "losses",
    "read_store",
    "record",
    "select",
    "stability",
    "strategies",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _WHERE[name]
    return getattr(import_module(module), attribute)
