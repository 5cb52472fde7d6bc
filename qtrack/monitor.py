"""How long work tells that it moves: phases with a count, and values on curves.

The engine calls a Monitor and knows nothing of terminals or MLflow; the command line shows bars, the ledger
stores curves, and scripts that want silence pass SILENT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Monitor(Protocol):
    """Receives the progress of one execution."""

    def phase(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        """Enter a phase of ``total`` samples (None: unknown); the result is called with samples done."""

    def report(self, key: str, value: float, step: int) -> None:
        """Put a point on a curve, such as ``train/loss`` over epochs."""


class Silent:
    """A monitor that shows and keeps nothing."""

    @contextmanager
    def phase(self, name: str, total: int | None) -> Iterator[Advance]:
        yield lambda done: None

    def report(self, key: str, value: float, step: int) -> None:
        pass


SILENT: Monitor = Silent()


class Titled:
    """Shows phases under a title, on another monitor."""

    def __init__(self, title: str, monitor: Monitor) -> None:
        self.title = title
        self.monitor = monitor

    def phase(self, name: str, total: int | None) -> AbstractContextManager[Advance]:
        return self.monitor.phase(f"{self.title}: {name}", total)

    def report(self, key: str, value: float, step: int) -> None:
        self.monitor.report(key, value, step)
