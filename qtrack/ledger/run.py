"""One open MLflow run: writes in batches, and ends with the right status whatever happens.

Always with the run's id, never through MLflow's global active run, so that a user's own runs are not touched.
"""

from __future__ import annotations

import logging
import math
import tempfile
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from mlflow.entities import DatasetInput, Param, RunTag
from mlflow.entities import Metric as LoggedMetric

from qtrack.errors import QtrackError
from qtrack.ledger.files import write_text
from qtrack.ledger.logs import Lines
from qtrack.ledger.metrics import Point
from qtrack.ledger.names import File, Tag, metric_key
from qtrack.ledger.quiet import hurried
from qtrack.ledger.store import Store

log = logging.getLogger("qtrack")

BATCH = 800  # MLflow takes 1,000 values a call, of which 100 may be tags and 100 params
FLUSH_POINTS = 200
FLUSH_S = 5.0
HEARTBEAT_S = 30.0
RETRY_S = 60.0
MAX_TAG = 8000


class OpenRun:
    """A run from its creation to its end."""

    def __init__(
        self, store: Store, experiment: str, name: str, tags: Mapping[str, str], lines: Lines
    ) -> None:
        self.store = store
        self.name = name
        self.lines = lines
        self._log_start = len(lines.lines)
        self._points: list[LoggedMetric] = []
        self._flush_at = time.monotonic() + FLUSH_S
        self._beat_at = time.monotonic() + HEARTBEAT_S
        with store.calling(f"open the run {name!r}") as client:
            run = client.create_run(experiment, tags=_short(dict(tags) | _heartbeat()), run_name=name)
        self.id: str = run.info.run_id

    @contextmanager
    def kept(self) -> Iterator[Self]:
        """The run's life: FINISHED at its end, FAILED on an exception, KILLED on Ctrl-C or exit."""
        try:
            yield self
            self.flush()
            self._upload_log()
            self._terminate("FINISHED")
        except BaseException as error:
            self._fail(error)
            raise

    def datasets(self, datasets: list[DatasetInput]) -> None:
        """Say which data the run works on."""
        with self.store.calling("record the data sets") as client:
            client.log_inputs(self.id, datasets=datasets)

    def log(
        self,
        points: Iterable[Point] = (),
        *,
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Write values at once, in as few calls as MLflow takes, with whatever waits to be written."""
        now = _now_ms()
        self._points += [LoggedMetric(point.key, float(point.value), now, point.step) for point in points]
        named = [Param(key, value) for key, value in (params or {}).items()]
        tagged = [RunTag(key, value) for key, value in _short(tags or {}).items()]
        with self.store.calling(f"write the metrics of {self.name!r}") as client:
            while self._points or named or tagged:
                batch = self._points[:BATCH]
                client.log_batch(self.id, metrics=batch, params=named, tags=tagged)
                del self._points[: len(batch)]
                named, tagged = [], []

    def report(self, key: str, value: float, step: int) -> None:
        """Put a point on a curve; sent with others after a while. A store that is away stops no work."""
        if not math.isfinite(value):
            log.warning("%s: %s is %s at step %d: left out of the record", self.name, key, value, step)
            return
        self._points.append(LoggedMetric(metric_key(key), float(value), _now_ms(), step))
        if len(self._points) < FLUSH_POINTS and time.monotonic() < self._flush_at:
            return
        try:
            self.flush()
        except QtrackError as error:
            log.warning("%s; the points are kept and sent later", error)
            self._flush_at = time.monotonic() + RETRY_S

    def flush(self) -> None:
        """Write the points that wait, and the heartbeat where it is due."""
        now = time.monotonic()
        beat = _heartbeat() if now >= self._beat_at else {}
        if self._points or beat:
            self.log(tags=beat)
        self._flush_at = time.monotonic() + FLUSH_S
        self._beat_at = now + HEARTBEAT_S if beat else self._beat_at

    @contextmanager
    def files(self) -> Iterator[Path]:
        """A folder to write files into; what it holds at the end goes to the run in one call."""
        with tempfile.TemporaryDirectory(prefix="qtrack-", ignore_cleanup_errors=True) as name:
            yield Path(name)
            if next(Path(name).iterdir(), None) is not None:
                with self.store.calling(f"write the files of {self.name!r}") as client:
                    client.log_artifacts(self.id, name)

    def _upload_log(self, error: BaseException | None = None) -> None:
        said = self.lines.since(self._log_start)
        with self.files() as folder:
            if said:
                write_text(folder / File.LOG, said)
            if error is not None:
                write_text(folder / File.ERROR, "".join(traceback.format_exception(error)))

    def _fail(self, error: BaseException) -> None:
        """End the run after an error; what goes wrong on the way must not hide that error."""
        status = "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"
        with hurried():
            try:
                self.flush()
                self._upload_log(error)
            except Exception as second:
                log.warning("the error could not be recorded with the run %s: %s", self.name, second)
            finally:
                self._try_to_terminate(status)

    def _try_to_terminate(self, status: str) -> None:
        try:
            self._terminate(status)
        except Exception as second:
            log.warning("the run %s (%s) could not be ended as %s: %s", self.name, self.id, status, second)

    def _terminate(self, status: str) -> None:
        with self.store.calling(f"end the run {self.name!r}") as client:
            client.set_terminated(self.id, status)


def _heartbeat() -> dict[str, str]:
    return {Tag.HEARTBEAT: datetime.now(UTC).isoformat(timespec="seconds")}


def _short(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value[:MAX_TAG] for key, value in tags.items()}


def _now_ms() -> int:
    return int(time.time() * 1000)
