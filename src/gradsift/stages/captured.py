"""A captured run with everything that is needed to go on from it."""

from __future__ import annotations

from dataclasses import dataclass

from gradsift.commands.select import Files
from gradsift.config import CaptureConfig, SelectionConfig
from gradsift.data.pool import Pool
from gradsift.store.reader import GradientStore
from gradsift.training.model import ModelSource


@dataclass(frozen=True)
class Captured:
    """A run folder, opened.

    Attributes:
        store: Its gradients.
        pool: Its rows, loaded again.
        source: Its model.
        settings: Of its capture.
        selection: SelectionConfig that arms select with, unless they have their own.
        files: Reference runs and lists of ids that they select with.
    """

    store: GradientStore
    pool: Pool
    source: ModelSource
    settings: CaptureConfig
    selection: SelectionConfig
    files: Files
