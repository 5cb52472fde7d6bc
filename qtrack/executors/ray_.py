"""A Ray cluster: the one door to Ray.

Lost workers and nodes are reported, not retried by Ray itself, so that tries are counted in one place and
said. Workers import qtrack and read the user's files: both must be at the same paths on every node.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

try:
    import ray
    from ray import exceptions
except ImportError as cause:
    from qtrack.errors import BackendUnavailable

    raise BackendUnavailable("the executor ray needs: pip install 'qtrack[ray]'") from cause

from qtrack.errors import InputError
from qtrack.executors import Job, Placed, WorkerLost, perform

LOST = (
    exceptions.WorkerCrashedError,
    exceptions.NodeDiedError,
    exceptions.LocalRayletDiedError,
    exceptions.OutOfMemoryError,
    exceptions.ObjectLostError,
    exceptions.RaySystemError,
)
NEW = "local"
"""Ray's word for a cluster of one's own; where it is told nothing, it joins any that runs on this machine."""

TOKEN = "it asks for a token; set RAY_AUTH_MODE=token, and the token in RAY_AUTH_TOKEN or ~/.ray/auth_token"
ANSWER_S = 9.0
STDERR = 2
AHEAD = 2
"""Jobs for each core of the cluster that wait in it, so that no worker is idle between two."""


@dataclass(frozen=True)
class _Stored:
    """Implements Placed, in Ray's object store: a node is sent it once, whatever jobs it has."""

    reference: Any

    def read(self) -> bytes:
        content: bytes = ray.get(self.reference)
        return content


class RayExecutor:
    """Implements Executor; joins the cluster at an address, or starts one on this machine."""

    aside = True

    def __init__(self, address: str | None = None, workers: int | None = None) -> None:
        self._ours = not ray.is_initialized()
        if self._ours:
            _join(address or os.environ.get("RAY_ADDRESS") or NEW, workers)
        self._perform = ray.remote(max_retries=0)(perform)

    @property
    def slots(self) -> int:
        """As nodes come and go."""
        known: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return AHEAD * max(1, int(known.get("CPU", 1)))

    def at_once(self, threads: int) -> int:
        return max(1, sum(int(node.get("CPU", 0)) // threads for node in _nodes()))

    def submit(self, job: Job) -> Future[Any]:
        too_large = _too_large(job)
        if too_large:
            return _failed(InputError(too_large))
        settings = {"OMP_NUM_THREADS": str(job.threads)}
        remote = self._perform.options(
            num_cpus=job.threads, num_gpus=job.gpus, name=job.name, runtime_env={"env_vars": settings}
        )
        answer: Future[Any] = Future()
        remote.remote(job).future().add_done_callback(lambda inner: _passed_on(inner, answer))
        return answer

    def placed(self, content: bytes) -> AbstractContextManager[Placed]:
        return nullcontext(_Stored(ray.put(content)))

    def close(self) -> None:
        if self._ours:
            ray.shutdown()


def _join(address: str, workers: int | None) -> None:
    started: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False} if address == NEW else {}
    if workers is not None and address != NEW:
        raise InputError(f"--workers is for a new cluster; that at {address} has cores of its own")
    if address == NEW:  # else Ray writes one into the user's home, which later clusters would ask for
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    host, _, port = address.removeprefix("ray://").rpartition(":")
    with TemporaryFile() as printed:
        try:
            if host and port.isdecimal():  # of which Ray itself would make minutes
                socket.create_connection((host, int(port)), ANSWER_S).close()
            with _stderr_to(printed):
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **started)
        except (OSError, RuntimeError, ValueError) as cause:
            said = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            printed.seek(0)
            if b"InvalidAuthToken" in printed.read():
                said = TOKEN
            raise InputError(f"Ray at {address} cannot be joined: {said}") from cause


@contextmanager
def _stderr_to(file: IO[bytes]) -> Iterator[None]:
    """Of the whole process: Ray's library prints a line for each attempt, past Python."""
    sys.stderr.flush()
    before = os.dup(STDERR)
    os.dup2(file.fileno(), STDERR)
    try:
        yield
    finally:
        os.dup2(before, STDERR)
        os.close(before)


def _nodes() -> list[dict[str, float]]:
    """What each node has."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in known if node["Alive"]]


def _too_large(job: Job) -> str:
    """Ray would let it wait for ever."""
    if any(node.get("CPU", 0) >= job.threads and node.get("GPU", 0) >= job.gpus for node in _nodes()):
        return ""
    return f"no node of the cluster has {job.threads} CPU threads and {job.gpus} GPUs, which the job takes"


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future


def _passed_on(inner: Future[Any], answer: Future[Any]) -> None:
    error = inner.exception()
    if error is None:
        answer.set_result(inner.result())
    elif isinstance(error, LOST):
        answer.set_exception(WorkerLost(_reason(error)))
    elif isinstance(error, exceptions.RayTaskError):
        answer.set_exception(error.cause if isinstance(error.cause, Exception) else error)
    else:
        answer.set_exception(error)


def _reason(error: BaseException) -> str:
    if isinstance(error, exceptions.OutOfMemoryError):
        return "its node ran out of memory"
    if isinstance(error, exceptions.WorkerCrashedError):
        return "its worker ended; killed, or out of memory"
    return f"its node is gone ({type(error).__name__})"
