"""The one way to MLflow: which store, opened with care, every call timed and every failure one line."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from qtrack.errors import QtrackError, StoreAway, StoreError
from qtrack.ledger import postgres, sqlite_file
from qtrack.ledger.masking import mask_secrets
from qtrack.ledger.preflight import DATABASES, check, explain, failure, may_pass, scheme_of, sqlite_path
from qtrack.ledger.quiet import silence_logs

ARTIFACTS = "mlartifacts"
HOME = ".qtrack"


class Store:
    """A tracking store that answered."""

    def __init__(self, uri: str, client: MlflowClient, seconds: float = 0.0) -> None:
        self.uri = uri
        path = sqlite_path(uri)
        self.home = (path.parent if path else Path.cwd()) / HOME
        """Where qtrack keeps what it needs on this machine: beside the database, or in the working folder."""
        self.seconds = seconds
        """Wall time spent inside MLflow so far."""
        self.client = client

    @contextmanager
    def calling(self, doing: str) -> Iterator[MlflowClient]:
        """Time what is asked of MLflow, and turn what it raises into one line; not to be nested."""
        started = time.perf_counter()
        try:
            yield self.client
        except QtrackError:
            raise
        except Exception as error:
            kind = StoreAway if may_pass(error) else StoreError
            raise failure(self.uri, f"cannot {doing}: {explain(error)}", kind) from error
        finally:
            self.seconds += time.perf_counter() - started

    def experiment_named(self, name: str) -> Experiment | None:
        """The experiment, unless it does not exist or was deleted."""
        with self.calling(f"find the experiment {name!r}") as client:
            found = client.get_experiment_by_name(name)
        return found if found is not None and found.lifecycle_stage == "active" else None

    def experiment_for(self, name: str) -> str:
        """The id of an experiment, created where there is none."""
        found = self.experiment_named(name)
        return found.experiment_id if found else self._create_experiment(name)

    def _create_experiment(self, name: str) -> str:
        with self.calling(f"create the experiment {name!r}") as client:
            try:
                return str(client.create_experiment(name, artifact_location=self._artifact_location(name)))
            except MlflowException as error:
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
                if found.lifecycle_stage == "active":  # another process was quicker
                    return str(found.experiment_id)
                advice = f"mlflow experiments restore --experiment-id {found.experiment_id}"
                raise StoreError(
                    f"the experiment {name!r} was deleted in MLflow; restore it: {advice}"
                ) from error

    def _artifact_location(self, name: str) -> str | None:
        """Beside the database, as an absolute path: client, ``mlflow ui`` and ``mlflow server`` all find it.

        None where a server decides. MLflow's own default for a bare database is a folder ``mlruns``, which it
        then mistakes for a file store.
        """
        if scheme_of(self.uri) not in DATABASES:
            return None
        path = sqlite_path(self.uri)
        folder = (path.parent if path else Path.cwd()) / ARTIFACTS
        location = folder / (re.sub(r"[^\w.-]+", "_", name).strip(".") or "experiment")
        return location.as_uri() if re.search(r"[%?#]", str(location)) else str(location)

    def __str__(self) -> str:
        return mask_secrets(self.uri)


def open_store(uri: str | None = None, folder: Path | None = None) -> Store:
    """Open the store named here, by MLflow's own settings, or by default ``mlflow.db`` in the folder."""
    uri = _absolute(uri or _default_uri(folder))
    started = time.perf_counter()
    silence_logs()
    check(uri)
    try:
        client = _opened(uri)
    except QtrackError:
        raise
    except Exception as error:
        raise failure(uri, explain(error)) from error
    silence_logs()  # a migration sets the levels of its own loggers
    return Store(uri, client, time.perf_counter() - started)


def absent_file(uri: str | None = None) -> Path | None:
    """The database file that ``open_store`` would make; None where the store is another, or there already."""
    path = sqlite_path(_absolute(uri or _default_uri(None)))
    return None if path is None or path.exists() else path


def _opened(uri: str) -> MlflowClient:
    """Where processes could create a database together, one after the other."""
    path = sqlite_path(uri)
    if path is not None:
        return sqlite_file.opened(uri, path, lambda: _connected(uri))
    if scheme_of(uri) == "postgresql":
        return postgres.opened(uri, lambda: _connected(uri))
    return _connected(uri)


def _connected(uri: str) -> MlflowClient:
    client = MlflowClient(uri)
    client.search_experiments(max_results=1)  # connects, and creates or migrates the database
    return client


def _default_uri(folder: Path | None) -> str:
    if folder is None or mlflow.tracking.is_tracking_uri_set():
        return str(mlflow.get_tracking_uri())
    return sqlite_uri(folder / "mlflow.db")


def sqlite_uri(path: Path) -> str:
    """Only what a URI gives a meaning is encoded: of an encoded space MLflow makes a folder ``a%20b``."""
    encoded = re.sub(r"[%?#]", lambda match: f"%{ord(match[0]):02X}", str(path.absolute()))
    return f"sqlite:///{encoded}"


def _absolute(uri: str) -> str:
    """The same store wherever the process goes later."""
    path = sqlite_path(uri)
    if path is None or "?" in uri:
        return uri
    return sqlite_uri(path)
