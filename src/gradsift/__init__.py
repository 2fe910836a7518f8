"""gradsift picks the part of an SFT set that is worth training on, by each row's gradient.

Names are loaded when first used: `import gradsift` is quick, and only `capture` needs torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gradsift.version import __version__

if TYPE_CHECKING:
    from gradsift.comparing import compare, train
    from gradsift.data.loading import load_pool
    from gradsift.data.pool import Pool
    from gradsift.run import capture, check, losses
    from gradsift.selecting import select, stability, strategies
    from gradsift.selection.settings import Settings
    from gradsift.stages.explain import explain_row as explain
    from gradsift.stages.record import record
    from gradsift.store.reader import GradientStore, read_store

_WHERE = {
    "GradientStore": ("gradsift.store.reader", "GradientStore"),
    "Pool": ("gradsift.data.pool", "Pool"),
    "capture": ("gradsift.run", "capture"),
    "compare": ("gradsift.comparing", "compare"),
    "check": ("gradsift.run", "check"),
    "explain": ("gradsift.stages.explain", "explain_row"),
    "load_pool": ("gradsift.data.loading", "load_pool"),
    "record": ("gradsift.stages.record", "record"),
    "read_store": ("gradsift.store.reader", "read_store"),
    "losses": ("gradsift.run", "losses"),
    "select": ("gradsift.selecting", "select"),
    "Settings": ("gradsift.selection.settings", "Settings"),
    "stability": ("gradsift.selecting", "stability"),
    "train": ("gradsift.comparing", "train"),
    "strategies": ("gradsift.selecting", "strategies"),
}

__all__ = [
    "GradientStore",
    "Pool",
    "Settings",
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
