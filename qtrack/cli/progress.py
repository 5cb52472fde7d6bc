"""What a run shows while it works, on stderr: bars on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from qtrack.monitor import Advance, Monitor
from qtrack.report.cells import visible

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def monitor(console: Console) -> Iterator[Monitor]:
    """The monitor that suits a console; messages of the log ``qtrack`` go to the same place."""
    log, handler = logging.getLogger("qtrack"), _ToConsole(console)
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        if console.is_terminal and not console.is_dumb_terminal:
            with Bars(console) as bars:
                yield bars
        else:
            yield Lines(console)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class Bars:
    """The running phase as a bar with its count, the time left and the last value of a curve."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[value]}", markup=False, style="cyan"),
            console=console,
            transient=True,
        )

    def __enter__(self) -> Bars:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Advance]:
        bar = self.progress.add_task(visible(name), total=total, value="")
        try:
            yield lambda done: self.progress.advance(bar, done)
        finally:
            self.progress.remove_task(bar)

    def report(self, key: str, value: float, step: int) -> None:
        for bar in self.progress.task_ids:
            self.progress.update(bar, value=visible(point(key, value, step)))


class Lines:
    """A line for each stage that begins, and now and then a value of a curve."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.stage = ""
        self.last_value = 0.0

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Advance]:
        stage = name.partition(":")[0]
        if stage != self.stage:
            self.stage = stage
            self._print(stage)
        yield lambda done: None

    def report(self, key: str, value: float, step: int) -> None:
        now = time.monotonic()
        if now - self.last_value >= SECONDS_BETWEEN_LINES:
            self.last_value = now
            self._print(f"{self.stage}: {point(key, value, step)}")

    def _print(self, text: str) -> None:
        self.console.print(Text(visible(text)), soft_wrap=True)


class _ToConsole(logging.Handler):
    """Log messages above the bar, as they are: layer names are no markup."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else ""
        self.console.print(Text(visible(record.getMessage()), style), soft_wrap=True)


def point(key: str, value: float, step: int) -> str:
    """A point on a curve: ``train/loss 0.0312 (epoch 3)`` reads as ``train/loss 0.0312 at 3``."""
    return f"{key} {value:.4g} at {step}"
