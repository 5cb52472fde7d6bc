"""Where work is done: in this process, in processes of this machine, or on a Ray cluster.

A job names a function and plain arguments, so that it can be done anywhere and done again. An executor does
one at a time or many; ``finished`` keeps it busy, tries again what was lost with its worker, and hands the
rest over as it comes: memory does not grow with the number of jobs that wait.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

from qtrack.errors import InputError, QtrackError

log = logging.getLogger("qtrack")

EXECUTORS = {
    "in-process": "qtrack.executors.in_process:InProcess",
    "processes": "qtrack.executors.processes:Processes",
    "ray": "qtrack.executors.ray_:RayExecutor",
}
TRIES = 3
"""Of a job whose worker is lost each time."""


class WorkerLost(QtrackError):
    """The worker ended before its job did: killed, out of memory, or its node is gone."""


@dataclass(frozen=True)
class Job:
    """A call that can be made anywhere."""

    name: str
    function: str
    """``package.module:function``, importable on the worker."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """By keyword; plain data."""
    threads: int = 1
    """CPU threads that it takes; torch uses as many."""
    gpus: int = 0


@dataclass(frozen=True)
class Finished:
    """A job that came to its end, one way or the other."""

    job: Job
    tries: int
    result: Any = None
    error: BaseException | None = None


class Placed(Hashable, Protocol):
    """Bytes that many jobs take among their arguments, and each worker is sent once."""

    def read(self) -> bytes:
        """On a worker, or here; it keeps none of them."""


class Executor(Protocol):
    """Does jobs."""

    @property
    def aside(self) -> bool:
        """Does it work while its caller does something else?"""

    @property
    def slots(self) -> int:
        """Jobs that it takes before it has finished one."""

    def at_once(self, threads: int) -> int:
        """Jobs of so many threads each that it has workers for; at most ``slots``."""

    def submit(self, job: Job) -> Future[Any]:
        """Begin; the future raises WorkerLost where another try may succeed, else what the job raises."""

    def placed(self, content: bytes) -> AbstractContextManager[Placed]:
        """Where workers find it, until the context ends."""

    def close(self) -> None:
        """Stop what runs still, and give back what was held."""


def perform(job: Job) -> Any:
    """On the worker: import the function, and call it with as many threads as the job takes."""
    import torch

    torch.set_num_threads(job.threads)
    module, _, name = job.function.partition(":")
    return getattr(import_module(module), name)(**job.arguments)


@dataclass(frozen=True)
class Within:
    """Implements Placed: it is sent with each job."""

    content: bytes

    def read(self) -> bytes:
        return self.content


class Watched:
    """Implements Executor, with another; several can use it that leave each other room."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._given: set[Future[Any]] = set()
        self.aside = executor.aside

    @property
    def slots(self) -> int:
        return self._executor.slots

    def at_once(self, threads: int) -> int:
        return self._executor.at_once(threads)

    def submit(self, job: Job) -> Future[Any]:
        future = self._executor.submit(job)
        self._given.add(future)
        return future

    def placed(self, content: bytes) -> AbstractContextManager[Placed]:
        return self._executor.placed(content)

    def running(self) -> set[Future[Any]]:
        """What takes a slot now."""
        self._given = {future for future in self._given if not future.done()}
        return set(self._given)

    def close(self) -> None:
        self._executor.close()


def finished(
    executor: Executor, jobs: Iterable[Job], tries: int = TRIES, others: Collection[Future[Any]] = ()
) -> Iterator[Finished]:
    """Do all jobs; one that fails stops no other. The next is asked for when there is room for it.

    ``others`` run already, and leave at least one slot.
    """
    source, waiting = iter(jobs), dict[Future[Any], tuple[Job, int]]()
    while True:
        taken = sum(not other.done() for other in others)
        while len(waiting) + taken < executor.slots and (job := next(source, None)):
            waiting[executor.submit(job)] = job, 1
        if not waiting:
            return
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            job, tried = waiting.pop(future)
            error = future.exception()
            if isinstance(error, WorkerLost) and tried < tries:
                log.warning("%s: %s; it is tried again", job.name, error)
                waiting[executor.submit(job)] = job, tried + 1
            else:
                yield Finished(job, tried, None if error else future.result(), error)


def open_executor(
    name: str | None = None, *, address: str | None = None, workers: int | None = None, threads: int = 1
) -> AbstractContextManager[Executor]:
    """The executor of this name; else ``ray`` where RAY_ADDRESS or an address says so, or in-process.

    Of processes there are as many as fit into this machine with the ``threads`` of a job, or ``workers``.

    Raises InputError on an unknown name, a missing package, or a cluster that does not answer.
    """
    from contextlib import closing

    found = name or ("ray" if address or os.environ.get("RAY_ADDRESS") else "in-process")
    if found not in EXECUTORS:
        raise InputError(f"executor {found!r} is not one of {', '.join(EXECUTORS)}")
    if address and found != "ray":
        raise InputError(f"--address goes with the executor ray, not with {found}")
    if found == "in-process" and workers not in (None, 1):
        raise InputError("--workers goes with the executors processes and ray, not with in-process")
    if found == "processes" and workers is None:
        workers = max(1, (os.cpu_count() or 1) // threads)
    module, _, kind = EXECUTORS[found].partition(":")
    make: Callable[..., Any] = getattr(import_module(module), kind)
    return closing(make(address=address, workers=workers))
