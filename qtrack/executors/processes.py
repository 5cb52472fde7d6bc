"""Processes of this machine, each a worker that is used again."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from qtrack.executors import Job, Placed, Within, WorkerLost, perform

log = logging.getLogger("qtrack")


@dataclass(frozen=True)
class _InFile:
    """Implements Placed."""

    path: Path

    def read(self) -> bytes:
        return self.path.read_bytes()


class Processes:
    """Implements Executor. A pool of one for each worker, so that a death is known to be of one job."""

    aside = True

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        self.slots = workers or 1
        self._idle = [_pool() for _ in range(self.slots)]
        self._busy: set[ProcessPoolExecutor] = set()

    def at_once(self, threads: int) -> int:
        return self.slots

    def submit(self, job: Job) -> Future[Any]:
        pool, answer = self._idle.pop(), Future[Any]()
        self._busy.add(pool)

        def done(inner: Future[Any]) -> None:
            error = inner.exception()
            self._busy.discard(pool)
            self._idle.append(_pool() if isinstance(error, BrokenProcessPool) else pool)
            if isinstance(error, BrokenProcessPool):
                answer.set_exception(WorkerLost("its process ended; killed, or out of memory"))
            elif error:
                answer.set_exception(error)
            else:
                answer.set_result(inner.result())

        pool.submit(perform, job).add_done_callback(done)
        return answer

    @contextmanager
    def placed(self, content: bytes) -> Iterator[Placed]:
        with ExitStack() as opened:
            yield _in_file(content, opened)

    def close(self) -> None:
        for pool in (*self._idle, *self._busy):
            for process in (getattr(pool, "_processes", None) or {}).values():
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)


def _in_file(content: bytes, opened: ExitStack) -> Placed:
    """In one that is removed in the end; where none can be written, with each job."""
    try:
        path = Path(opened.enter_context(TemporaryDirectory(prefix="qtrack-"))) / "content"
        path.write_bytes(content)
        return _InFile(path)
    except OSError as error:
        log.warning("a temporary file cannot be written (%s): each job is sent a copy", error.strerror)
        return Within(content)


def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, get_context("spawn"), _quiet)


def _quiet() -> None:
    """Ctrl-C is for the driver, which then ends its workers; a process is not to use all cores at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import warnings

    warnings.simplefilter("ignore")
