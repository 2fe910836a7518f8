"""What is shown on stderr: notes, and progress as a bar where somebody looks on, else as lines."""

from __future__ import annotations

import functools
import logging
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from gradsift.errors import GradsiftError
from gradsift.progress import Progress, is_first_process, no_progress
from gradsift.wording import in_line, short

Function = TypeVar("Function", bound=Callable[..., Any])

SECONDS_BETWEEN_LINES = 15.0
# What libraries say while they are imported, by logger, where they are installed for other things:
# it is so on every machine of that kind, and changes nothing that is computed.
HARMLESS = {
    # Faster products of 4-bit weights on a CPU want one more package.
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
    # It finds no GPU; and says so on stdout, where results go.
    "DeepSpeed": "Setting accelerator to CPU.",
}


def talk_on_stderr(worded: Callable[[str], str] = str) -> Progress:
    """Show gradsift's log on stderr, and return what shows progress there.

    Lines go through `worded` first. All processes but the first are silent.
    """
    if not is_first_process():
        return no_progress
    for name, words in HARMLESS.items():
        library = logging.getLogger(name)
        if not any(isinstance(one, _Without) for one in library.filters):
            library.addFilter(_Without(words))
    console = _stderr()
    logger = logging.getLogger("gradsift")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in [one for one in logger.handlers if isinstance(one, _Handler)]:
        logger.removeHandler(handler)
    logger.addHandler(_Handler(console, worded))
    return Display(_Bar(console) if sys.stderr.isatty() else _Lines(console))


def shows_progress(function: Function) -> Function:
    """Let a function take `progress=True` (its default), False, or a function of the caller's own.

    What it is called with is something that can be called, as `Progress` says. On the command line
    that is the display of the command, and stays it.
    """

    @functools.wraps(function)
    def shown(*arguments: Any, progress: Progress | bool = True, **values: Any) -> Any:
        with _shown(progress) as display:
            return function(*arguments, progress=display, **values)

    return shown


@contextmanager
def _shown(progress: Progress | bool) -> Generator[Progress, None, None]:
    if callable(progress):
        yield progress
        return
    if not isinstance(progress, bool):
        raise GradsiftError(
            f"`progress` is {short(repr(progress), 80)}, expected True, False or a function of "
            "rows done, rows in all, tokens done, tokens in all."
        )
    if not progress or not is_first_process():
        yield no_progress
        return
    if _in_notebook():
        display = Display(_NotebookBar())
    else:
        console = _stderr()
        display = Display(_Bar(console) if sys.stderr.isatty() else _Lines(console))
    try:
        yield display
    finally:
        display.end()


def _stderr() -> Console:
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return "IPKernelApp" in getattr(shell, "config", {})  # By which tqdm.auto tells it, too.


class _Without(logging.Filter):
    def __init__(self, words: str):
        super().__init__()
        self._words = words

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self._words)


class _Handler(logging.Handler):
    def __init__(self, console: Console, worded: Callable[[str], str]):
        super().__init__()
        self._console, self._worded = console, worded

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "warning: " if record.levelno >= logging.WARNING else ""
        self._console.print(prefix + self._worded(in_line(record.getMessage())))


@dataclass
class _Standing:
    """How far a stage is, and what is left of it at the speed of this session.

    Attributes:
        done: What was done with the rows that are: "scored"; "" where that needs no word.
        kept: Rows of them that are on the disk.
    """

    done: str
    n_rows: int
    all_rows: int
    n_tokens: int
    kept: int
    speed: float
    seconds_left: float | None
    at: float

    @property
    def rows(self) -> str:
        return f"rows {self.done}".rstrip()

    @property
    def pace(self) -> str:
        return f"{self.speed:.0f} tokens/s" if self.speed else ""


class _Screen(Protocol):
    @property
    def is_live(self) -> bool: ...

    def show(self, now: _Standing) -> None: ...

    def end(self) -> None: ...


class Display:
    """Shows one stage after the other; called as `Progress` says."""

    def __init__(self, screen: _Screen, done: str = "", standing: list | None = None):
        """`standing` is where that of the last stage is kept, for all stages of a command."""
        self._screen, self._done = screen, done
        self._standing: list[_Standing] = [] if standing is None else standing
        self._kept = 0
        self._first: tuple[float, int] | None = None
        self._last = 0

    def stage(self, done: str) -> Display:
        """Return what shows the next stage; see `gradsift.progress.stage`."""
        return Display(self._screen, done, self._standing)

    def kept(self) -> None:
        """Note that all rows done so far are on the disk."""
        if self._standing:
            self._kept = self._standing[0].kept = self._standing[0].n_rows

    def __call__(self, n_rows: int, all_rows: int, n_tokens: int, all_tokens: int) -> None:
        """Show how far it is."""
        now = time.monotonic()
        # Counted anew where the same function is used for another stage.
        if self._first is None or n_tokens < self._last:
            self._first = now, n_tokens
            self._kept = n_rows  # What a stage begins with, it has from the disk.
        self._last = n_tokens
        seconds, tokens = now - self._first[0], n_tokens - self._first[1]
        speed = tokens / seconds if seconds > 0 else 0.0
        left = (all_tokens - n_tokens) / speed if speed else None
        self._standing[:] = [
            _Standing(self._done, n_rows, all_rows, n_tokens, self._kept, speed, left, now)
        ]
        self._screen.show(self._standing[0])

    def stopped(self) -> str | None:
        """Return what is said where a stage is interrupted; None before the first."""
        if not self._standing:
            return None
        now = self._standing[0]
        if now.kept == now.all_rows:
            what = f"stopped after all {now.all_rows} {now.rows}, which are kept"
            return f"{what}; the same command goes on with what follows"
        after = f"stopped after {now.n_rows} of {now.all_rows} {now.rows}; the same command"
        if now.kept == 0:
            return f"{after} begins with them again (none is kept yet)"
        return f"{after} resumes ({now.kept} of them are kept)"

    @property
    def hides_cursor(self) -> bool:
        """Whether a bar is on the screen, without an end of line behind it."""
        return self._screen.is_live

    def end(self) -> None:
        """Leave the screen as it is to be afterwards, also where a stage was not done."""
        self._screen.end()


class _Bar:
    def __init__(self, console: Console):
        self._progress = RichProgress(
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total} {task.fields[standing].rows}"),
            TextColumn("{task.fields[standing].pace}"),
            TimeElapsedColumn(),
            _TimeLeft(),
            console=console,
            expand=True,
        )
        self._task = None
        self._done = ""

    @property
    def is_live(self) -> bool:
        return self._progress.live.is_started

    def show(self, now: _Standing) -> None:
        if self._task is not None and now.done != self._done:
            self._stop()
        values = {"total": now.all_rows, "completed": now.n_rows, "standing": now}
        if self._task is None:
            self._done = now.done
            self._task = self._progress.add_task("", **values)
            self._progress.start()
        else:
            self._progress.update(self._task, **values)
        if now.n_rows == now.all_rows:
            self._stop()

    def end(self) -> None:
        if self._task is not None:
            self._stop()

    def _stop(self) -> None:
        self._progress.stop()
        self._progress.remove_task(self._task)
        self._task = None


class _TimeLeft(ProgressColumn):
    """From tokens: rich counts rows, needs several updates of them, and forgets slow ones."""

    def render(self, task: Task) -> Text:
        now: _Standing = task.fields["standing"]
        if now.seconds_left is None:
            return Text("")
        seconds = round(max(0.0, now.seconds_left - (time.monotonic() - now.at)))
        return Text(f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left")


class _Lines:
    is_live = False

    def __init__(self, console: Console):
        self._console = console
        self._last: tuple[str, float] | None = None

    def end(self) -> None:
        pass

    def show(self, now: _Standing) -> None:
        goes_on = self._last is not None and self._last[0] == now.done
        if goes_on and now.n_rows < now.all_rows and now.at - self._last[1] < SECONDS_BETWEEN_LINES:
            return
        self._last = None if now.n_rows == now.all_rows else (now.done, now.at)
        pace = "" if now.seconds_left is None else f", {now.pace}, {now.seconds_left:.0f} s left"
        self._console.print(f"{now.n_rows}/{now.all_rows} {now.rows}, {now.n_tokens} tokens{pace}")


class _NotebookBar:
    """tqdm's bar, which shows itself as a notebook can."""

    is_live = False

    def __init__(self) -> None:
        self._bar: Any = None
        self._done = ""

    def show(self, now: _Standing) -> None:
        from tqdm.auto import tqdm

        if self._bar is not None and (now.done != self._done or now.n_rows < self._bar.n):
            self.end()
        if self._bar is None:
            self._done = now.done
            self._bar = tqdm(
                total=now.all_rows, initial=now.n_rows, desc=now.rows, unit=" rows", leave=True
            )
        self._bar.set_postfix_str(now.pace, refresh=False)
        self._bar.update(now.n_rows - self._bar.n)
        if now.n_rows == now.all_rows:
            self.end()

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
