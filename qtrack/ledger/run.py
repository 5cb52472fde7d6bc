"""One open run: writes to its journal, and ends with the right status whatever happens.

Always with the run's id, never through MLflow's global active run, so that a user's own runs are not touched.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from qtrack.errors import QtrackError, StoreAway
from qtrack.ledger.files import write_text
from qtrack.ledger.heart import beating, signs_of_life
from qtrack.ledger.journal import now_ms
from qtrack.ledger.logs import Lines
from qtrack.ledger.masking import mask_secrets
from qtrack.ledger.metrics import Point
from qtrack.ledger.names import File, metric_key
from qtrack.ledger.sending import MAX_TAG
from qtrack.ledger.spool import Ended, Spool

log = logging.getLogger("qtrack")

FLUSH_POINTS = 200
FLUSH_S = 5.0


class OpenRun:
    """A run from its creation to its end."""

    def __init__(
        self, spool: Spool, experiment: str, name: str, tags: Mapping[str, str], lines: Lines
    ) -> None:
        self.spool = spool
        self.name = name
        self.lines = lines
        self._log_start = len(lines.lines)
        self._points: list[list[Any]] = []
        self._flush_at = time.monotonic() + FLUSH_S
        self._journal = spool.open(experiment, name, _shown(dict(tags) | signs_of_life()))

    @property
    def id(self) -> str | None:
        """As MLflow gave it; None as long as the store is away."""
        return self._journal.run_id

    @property
    def ended(self) -> Ended:
        """As one that something is added to after its end."""
        header = self._journal.header
        return Ended(header.experiment, header.name, header.run_id, header.record)

    @contextmanager
    def kept(self) -> Iterator[Self]:
        """The run's life: FINISHED at its end, FAILED on an exception, KILLED on Ctrl-C or exit."""
        try:
            with beating(self.spool.store, self._journal):
                yield self
            self.flush()
            self._write_log()
            self._end("FINISHED")
        except BaseException as error:
            self._fail(error)
            raise

    def datasets(self, datasets: list[dict[str, str]]) -> None:
        """Say which data the run works on."""
        self._append("inputs", datasets=datasets)

    def log(
        self,
        points: Iterable[Point] = (),
        *,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write values at once, with whatever waits to be written."""
        now = now_ms()
        self._points += [[point.key, float(point.value), now, point.step] for point in points]
        waiting, self._points = self._points, []
        self._flush_at = time.monotonic() + FLUSH_S
        self._append("values", points=waiting, params=_shown(params or {}), tags=_shown(tags or {}))

    def report(self, key: str, value: float, step: int) -> None:
        """Put a point on a curve; written with others after a while."""
        if not math.isfinite(value):
            log.warning("%s: %s is %s at step %d: left out of the record", self.name, key, value, step)
            return
        self._points.append([metric_key(key), float(value), now_ms(), step])
        if len(self._points) >= FLUSH_POINTS or time.monotonic() >= self._flush_at:
            self.flush()

    def flush(self) -> None:
        """Write the points that wait."""
        if self._points:
            self.log()

    @contextmanager
    def files(self) -> Iterator[Path]:
        """A folder to write files into; what it holds at the end goes to the run."""
        with self._journal.files() as folder:
            yield folder
        self.spool.send()

    def _append(self, kind: str, **content: Any) -> None:
        self._journal.append(kind, **content)
        self.spool.send()

    def _write_log(self, error: BaseException | None = None) -> None:
        said = self.lines.since(self._log_start)
        with self.files() as folder:
            if said:
                write_text(folder / File.LOG, said)
            if error is not None:
                write_text(folder / File.ERROR, "".join(traceback.format_exception(error)))

    def _fail(self, error: BaseException) -> None:
        """End the run after an error; what goes wrong on the way must not hide that error, nor say again that
        the store is away.

        A run whose end cannot be written is found dead by whoever comes next.
        """
        status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        steps = (self.flush, lambda: self._write_log(error), lambda: self._end(status))
        for step in steps:
            try:
                step()
            except (QtrackError, OSError) as second:
                if not (isinstance(error, StoreAway) and isinstance(second, StoreAway)):
                    log.warning("the error could not be recorded with the run %s: %s", self.name, second)

    def _end(self, status: str) -> None:
        self._append("end", status=status, ended_ms=now_ms())


def _shown(texts: Mapping[str, str]) -> dict[str, str]:
    """As long as MLflow takes them, and without secrets."""
    return {key: mask_secrets(value)[:MAX_TAG] for key, value in texts.items()}
