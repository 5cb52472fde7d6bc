"""One job after the other, here."""

from __future__ import annotations

from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from qtrack.executors import Job, Placed, Within, perform


class InProcess:
    """Implements Executor; a job is done before ``submit`` returns, and Ctrl-C interrupts it."""

    aside, slots = False, 1

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        pass

    def at_once(self, threads: int) -> int:
        return 1

    def submit(self, job: Job) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(perform(job))
        except Exception as error:  # whatever the job raises is its own failure
            future.set_exception(error)
        return future

    def placed(self, content: bytes) -> AbstractContextManager[Placed]:
        return nullcontext(Within(content))

    def close(self) -> None:
        pass
