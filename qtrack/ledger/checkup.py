"""Does a store do all that a long run will ask of it? Each part is tried, and cleared away again.

A run can only be written into an experiment: one of its own, under a name that no other has, so that checks
at the same time do not meet and no permission on an experiment of somebody's is needed. Both are deleted as
MLflow deletes, which hides them until ``mlflow gc``; the file is removed for good where that is permitted.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import NamedTuple

from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.rest_utils import http_request
from mlflow.version import VERSION

from qtrack.errors import QtrackError, StoreError
from qtrack.ledger.preflight import DATABASES, scheme_of
from qtrack.ledger.quiet import hurried
from qtrack.ledger.store import Store, absent_file, open_store, sqlite_uri

NAME, FILE = "qtrack-doctor", "qtrack-doctor.bin"
FILE_BYTES = 100_000
MAX_SKEW_S = 60.0
"""Of two clocks; beyond it, what one machine has just written looks old to another, and its runs dead."""
ROUNDS = 5


class Part(NamedTuple):
    """One thing that a store must do, and whether it does."""

    what: str
    holds: bool
    detail: str


def checkup(uri: str | None = None) -> list[Part]:
    """Try each part of the store at a URI, or of the default one; a database file is not made for it."""
    path = absent_file(uri)
    if path is not None:
        return [_absent(path)]
    try:
        with hurried():
            store = open_store(uri)
            answered = _milliseconds(store)
    except QtrackError as error:
        return [Part("store", False, str(error))]
    parts = [Part("store", True, f"{store}, answers in {answered:.0f} ms")]
    with hurried(timeout_s=10):
        if scheme_of(store.uri) in ("http", "https"):
            parts += _server(store)
        return [*parts, *_recording(store)]


def _absent(path: Path) -> Part:
    folder = next(parent for parent in path.parents if parent.exists())
    if folder.is_dir() and os.access(folder, os.W_OK):
        return Part("store", True, f"{sqlite_uri(path)}, which the first run creates")
    return Part("store", False, f"{sqlite_uri(path)} does not exist, and {folder} cannot be written")


def _milliseconds(store: Store) -> float:
    """The median time that a small question takes."""
    return 1000 * statistics.median(_seconds(store) for _ in range(ROUNDS))


def _seconds(store: Store) -> float:
    started = time.perf_counter()
    with store.calling("list the experiments") as client:
        client.search_experiments(max_results=1)
    return time.perf_counter() - started


def _server(store: Store) -> Iterator[Part]:
    """What only a server has: a version and a clock of its own."""
    try:
        with store.calling("ask the server for its version"):
            asked = time.time()
            answer = http_request(get_default_host_creds(store.uri), "/version", "GET")
            answered = time.time()
    except StoreError as error:
        yield Part("store version", False, str(error))
        return
    yield _version(answer.text.strip() if answer.ok else "")
    yield _clock(answer.headers.get("Date", ""), (asked + answered) / 2)


def _version(server: str) -> Part:
    if not re.fullmatch(r"\d+\.\d+[\w.+]*", server):
        return Part("store version", True, f"the server does not tell; MLflow {VERSION} here")
    remark = "" if _minor(server) == _minor(VERSION) else ", which qtrack is not tested with"
    return Part("store version", True, f"MLflow {server} on the server, {VERSION} here{remark}")


def _minor(version: str) -> list[str]:
    return version.split(".")[:2]


def _clock(date: str, here: float) -> Part:
    """Compare an HTTP date, which is cut to whole seconds, with a time of this machine's."""
    try:
        ahead = parsedate_to_datetime(date).timestamp() + 0.5 - here
    except ValueError:
        return Part("store clock", True, "the server does not tell its time")
    said = f"the server's is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
    if abs(ahead) <= MAX_SKEW_S:
        return Part("store clock", True, said)
    return Part("store clock", False, f"{said}: set both by a time server, or living runs are taken for dead")


def _recording(store: Store) -> list[Part]:
    trial = _Trial(store)
    try:
        runs = _tried("store runs", trial.write)
        files = Part("store artifacts", False, "not tried, for want of a run to put one into")
        if run := trial.run:
            files = _tried("store artifacts", lambda: trial.exchange(run))
    finally:
        left = _tried("store runs", trial.clear)
    return [left if runs.holds and not left.holds else runs, files]


def _tried(what: str, work: Callable[[], str]) -> Part:
    try:
        return Part(what, True, work())
    except OSError as error:  # as a StoreError is, too
        return Part(what, False, str(error))


class _Trial:
    """A run and a file that are written, read back and removed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = f"{NAME}-{uuid.uuid4().hex}"
        self.experiment: str | None = None
        self.run: str | None = None
        self.artifacts = ""

    def write(self) -> str:
        self.experiment = self.store.experiment_for(self.name)
        with self.store.calling("write a run") as client:
            info = client.create_run(self.experiment, run_name=NAME).info
            self.run, self.artifacts = info.run_id, info.artifact_uri
            client.log_metric(self.run, "value", 0.5)
            client.set_terminated(self.run)
            found = client.get_run(self.run)
        if (found.data.metrics, found.info.status) != ({"value": 0.5}, "FINISHED"):
            raise StoreError(f"what was written into the run {self.run} is not what is read from it")
        return "written, read back and deleted"

    def exchange(self, run: str) -> str:
        """Send a file of random bytes, fetch it, and remove it."""
        content = secrets.token_bytes(FILE_BYTES)
        started = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="qtrack-") as folder:
            path = Path(folder, FILE)
            path.write_bytes(content)
            with self.store.calling("write an artifact") as client:
                client.log_artifact(run, str(path))
            path.unlink()
            with self.store.calling("read an artifact") as client:
                client.download_artifacts(run, FILE, folder)
            if path.read_bytes() != content:
                raise StoreError(f"an artifact comes back changed: {FILE} of the run {run}")
        took = time.perf_counter() - started
        return f"{FILE_BYTES:,} bytes written and read back in {took:.1f} s, {self._removed()}"

    def _removed(self) -> str:
        """That is no part of what a run needs, so it may be forbidden."""
        try:
            with self.store.calling("remove it"):
                get_artifact_repository(self.artifacts, self.store.uri).delete_artifacts(FILE)
        except StoreError as error:
            return f"not removed: {error}"
        return "and removed"

    def clear(self) -> str:
        """Delete the run with its experiment, and the folder of their files where that lies here."""
        if self.experiment is None:
            return ""
        with self.store.calling(f"delete the experiment {self.name}") as client:
            location = client.get_experiment(self.experiment).artifact_location
            client.delete_experiment(self.experiment)  # and with it the run
        if scheme_of(self.store.uri) in DATABASES:
            _clear_folder(Path(local_file_uri_to_path(location)))
        return ""


def _clear_folder(folder: Path) -> None:
    """Those that qtrack makes beside a database: the experiment's, and that of all if it has no other."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.is_dir() and not any(folder.parent.iterdir()):
        folder.parent.rmdir()
