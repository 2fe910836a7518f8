"""The terminal: notes and progress on stderr, as a bar where somebody looks on, else as lines."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gradsift.progress import Progress as ProgressCallback
from gradsift.progress import no_progress

SECONDS_BETWEEN_LINES = 15.0


def is_first_process() -> bool:
    """Return whether this is the one of several training together that speaks for all."""
    return os.environ.get("RANK", "0") == "0"  # As torchrun and accelerate set it.


def talk_on_stderr(worded: Callable[[str], str] = str) -> ProgressCallback:
    """Show gradsift's log on stderr, and return what shows progress there.

    Lines go through `worded` first. All processes but the first are silent.
    """
    if not is_first_process():
        return no_progress
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    logger = logging.getLogger("gradsift")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in [one for one in logger.handlers if isinstance(one, _Handler)]:
        logger.removeHandler(handler)
    logger.addHandler(_Handler(console, worded))
    return _Bar(console) if sys.stderr.isatty() else _Lines(console)


class _Handler(logging.Handler):
    def __init__(self, console: Console, worded: Callable[[str], str]):
        super().__init__()
        self._console, self._worded = console, worded

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._console.print(prefix + self._worded(record.getMessage()))


class _Bar:
    def __init__(self, console: Console):
        self._progress = Progress(
            BarColumn(),
            TextColumn("{task.completed}/{task.total} rows"),
            TextColumn("{task.fields[speed]:.0f} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = None
        self._speed = _Speed()

    def __call__(self, n_rows: int, all_rows: int, n_tokens: int, all_tokens: int) -> None:
        speed = self._speed.after(n_tokens)
        if self._task is None:
            self._progress.start()
            self._task = self._progress.add_task("rows", total=all_rows, speed=speed)
        self._progress.update(self._task, completed=n_rows, total=all_rows, speed=speed)
        if n_rows == all_rows:
            self._progress.stop()
            self._task = None


class _Lines:
    def __init__(self, console: Console):
        self._console = console
        self._speed = _Speed()
        self._last = 0.0

    def __call__(self, n_rows: int, all_rows: int, n_tokens: int, all_tokens: int) -> None:
        speed = self._speed.after(n_tokens)
        now = time.monotonic()
        if n_rows < all_rows and now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        pace = (
            f", {speed:.0f} tokens/s, {(all_tokens - n_tokens) / speed:.0f} s left" if speed else ""
        )
        self._console.print(f"{n_rows}/{all_rows} rows, {n_tokens} tokens{pace}")


class _Speed:
    """Tokens per second since the first call; counted anew where another stage begins."""

    def __init__(self):
        self._start: tuple[float, int] | None = None
        self._last = 0

    def after(self, n_tokens: int) -> float:
        now = time.monotonic()
        if self._start is None or n_tokens < self._last:
            self._start = (now, n_tokens)
        self._last = n_tokens
        seconds, tokens = now - self._start[0], n_tokens - self._start[1]
        return tokens / seconds if seconds > 0 else 0.0
