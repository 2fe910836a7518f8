"""gradsift picks the part of an SFT set that is worth training on, by each row's gradient.

Names are loaded when first used: `import gradsift` is quick, and only what computes gradients needs
torch. Type checkers read __init__.pyi, which is written from the settings in config.py.
"""

from importlib import import_module

from gradsift.version import __version__

# Name → the module that has it.
PUBLIC = {
    "Agreement": "commands.agreement",
    "AuditResult": "commands.audit",
    "CaptureResult": "commands.capture",
    "Comparison": "comparison.tables",
    "DryRunResult": "commands.capture",
    "Explanation": "commands.explain",
    "Forecast": "commands.compare",
    "GradientStore": "store.reader",
    "GradsiftError": "errors",
    "MemoryPlan": "training.memory_plan",
    "ModelCheck": "commands.check",
    "Pool": "data.pool",
    "RecordCallback": "commands.record",
    "PushResult": "commands.push",
    "Recording": "recording.recording",
    "ReferenceLossesResult": "commands.reference_losses",
    "ReportResult": "commands.report",
    "Run": "run_folder",
    "SelectResult": "commands.select",
    "SelectionConfig": "config",
    "ShardedCaptureResult": "sharding.commands",
    "ShardedSelectResult": "sharding.commands",
    "Shown": "commands.show",
    "Stability": "commands.stability",
    "StrategiesResult": "commands.strategies",
    "TrainResult": "commands.train",
    "agreement": "commands.agreement",
    "audit": "commands.audit",
    "capture": "commands.capture",
    "capture_in_shards": "sharding.commands",
    "check": "commands.check",
    "compare": "commands.compare",
    "explain": "commands.explain",
    "explain_in_shards": "sharding.commands",
    "load_pool": "data.pool",
    "plan": "commands.plan",
    "push": "commands.push",
    "read_store": "store.reader",
    "record": "commands.record",
    "reference_losses": "commands.reference_losses",
    "report": "commands.report",
    "run": "commands.run",
    "select": "commands.select",
    "select_from_shards": "sharding.commands",
    "show": "commands.show",
    "stability": "commands.stability",
    "strategies": "commands.strategies",
    "train": "commands.train",
}
_RENAMED = {"Settings": "SelectionConfig", "losses": "reference_losses"}

__all__ = ["__version__", *PUBLIC]


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        raise AttributeError(f"gradsift.{name} is now called gradsift.{_RENAMED[name]}")
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return __all__
