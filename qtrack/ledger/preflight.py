"""Can the tracking store be used at all? Found out in seconds and said in one line, before any work begins.

MLflow itself would retry an unreachable server for four minutes, and a locked or corrupt database for more
than one.
"""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.environment_variables import MLFLOW_ALLOW_FILE_STORE
from mlflow.exceptions import MlflowException
from mlflow.tracking.registry import UnsupportedModelRegistryStoreURIException
from requests import HTTPError
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from qtrack.errors import StoreError
from qtrack.ledger.masking import mask_secrets
from qtrack.ledger.quiet import hurried

ANSWER_S = 9.0
DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
LOG = "the server's log says why"
KNOWN = "sqlite:///FILE, http://HOST:PORT, https://HOST, postgresql+psycopg2://..., databricks"

# Patterns of what stands somewhere in a chain of exceptions, and what to say of it; the first counts.
_MEANINGS = {
    # A server that fails while a file is on its way may close the connection before it has read it all.
    "/mlflow-artifacts/.*(too many 50. error|connection aborted)": f"it fails at its artifact store; {LOG}",
    "connection aborted": f"it broke off; {LOG}",
    "could not connect to the endpoint url": "the artifact store does not answer; see MLFLOW_S3_ENDPOINT_URL",
    "unable to locate credentials": "no credentials for the artifact store; see AWS_ACCESS_KEY_ID",
    "nosuchbucket": "the artifact store has no such bucket",
    "too many 500 error": f"it fails (500); {LOG}",
    "too many 503 error": f"it does not reach its database (503); {LOG}",
    "too many 50[24] error": "a proxy answers, but not the server behind it",
    "closed the connection|terminating connection": "the database closed the connection",
    "password authentication failed": "the database refused the user or the password",
    "connection refused": "connection refused; is the server running?",
    "name or service not known": "no such host",
    "nodename nor servname": "no such host",
    "name resolution": "no such host",
    "could not translate host": "no such host",
    "no route to host": "no route to the host",
    "network is unreachable": "the network is unreachable",
    "certificate verify failed": "its certificate is not trusted; see MLFLOW_TRACKING_SERVER_CERT_PATH",
    "wrong_version_number": "it does not speak https; try http://",
    "wrong version number": "it does not speak https; try http://",
    "timed out": "no answer in time",
    "database is locked": "the database is locked by another process",
    "readonly database": "the database is read-only",
    "unable to open database": "the database cannot be opened or created there",
    "file is not a database": "the file is not an SQLite database, or it is corrupt",
    "malformed": "the database is corrupt",
    "error code 401": "the server refused the credentials (401); see MLFLOW_TRACKING_USERNAME or _TOKEN",
    "invalid host header": "the server does not go by this name (403); see its option --allowed-hosts",
    "error code 403": "the server does not permit this (403)",
    "error code 404": "there is no MLflow server at this address (404)",
    "no space left": "no space left on the device",
    "permission denied": "permission denied",
}

REFUSALS = {
    *("BAD_REQUEST", "INVALID_PARAMETER_VALUE", "INVALID_STATE", "NOT_IMPLEMENTED"),
    *("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"),
}
"""MLflow's answers to a call that no waiting will make right."""

T = TypeVar("T")


def check(uri: str) -> None:
    """Raise StoreError in one line where the store cannot be reached or opened."""
    scheme = scheme_of(uri)
    if scheme == "sqlite":
        return  # its file is looked at as it is opened
    if scheme in ("http", "https"):
        _check_server(uri)
    elif scheme in DATABASES:
        _within(ANSWER_S, uri, lambda: _connect(uri))
    elif scheme in ("", "file"):
        _check_file_store(uri)
    elif scheme not in ("databricks", "databricks-uc", "uc"):
        _check_supported(uri, scheme)


def scheme_of(uri: str) -> str:
    """What stands before ``://``, without a driver; empty for a path."""
    scheme, separator, _ = uri.partition(":")
    return scheme.partition("+")[0].lower() if separator else ("databricks" if uri == "databricks" else "")


def sqlite_path(uri: str) -> Path | None:
    """Where a database file lies; None where the store is no file."""
    if scheme_of(uri) != "sqlite":
        return None
    database = make_url(uri).database
    return Path(database).absolute() if database and database != ":memory:" else None


def failure(uri: str, said: str, kind: type[StoreError] = StoreError) -> StoreError:
    """The error for this store, secrets masked."""
    return kind(f"tracking store {mask_secrets(uri)}: {mask_secrets(said)}")


def may_pass(error: BaseException) -> bool:
    """May the same call work later: was there no answer, or one about the store rather than about the call?

    A refusal of credentials counts, for they can be mended while what was recorded waits.
    """
    if isinstance(error, MlflowException):
        return error.error_code not in REFUSALS
    if isinstance(error, HTTPError) and error.response is not None:
        return error.response.status_code not in (400, 404, 405, 409, 413, 422)
    return isinstance(error, OSError | SQLAlchemyError)


def explain(error: BaseException) -> str:
    """One line about an exception of MLflow or of a library below it."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror or error}"
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name} is not installed, which this kind of store needs"
    text = " ".join(map(str, _chain(error))).lower()
    for needle, meaning in _MEANINGS.items():
        if re.search(needle, text, re.DOTALL):
            return meaning
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= 300 else lines[0][:297] + "..."


def disk_is_full(error: BaseException) -> bool:
    """Is that what the error came from, whatever a library has made of it?"""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(isinstance(one, OSError) and one.errno in full for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _check_server(uri: str) -> None:
    try:
        host = urlsplit(uri).hostname
    except ValueError as error:
        raise failure(uri, f"not a URL: {error}") from error
    if not host:
        raise failure(uri, "it names no host; write http://HOST:PORT")
    with hurried():
        _within(ANSWER_S, uri, lambda: MlflowClient(uri).search_experiments(max_results=1))


def _connect(uri: str) -> None:
    engine = create_engine(uri)
    try:
        engine.connect().close()
    finally:
        engine.dispose()


def _check_file_store(uri: str) -> None:
    if not MLFLOW_ALLOW_FILE_STORE.get():
        advice = f"use {KNOWN.partition(',')[0]}, or move its runs with mlflow migrate-filestore"
        raise failure(uri, f"this is a path, and MLflow has given up its store of plain files; {advice}")


def _check_supported(uri: str, scheme: str) -> None:
    """A scheme that is not MLflow's own may come from a plugin."""
    try:
        MlflowClient(uri)
    except UnsupportedModelRegistryStoreURIException as error:
        raise failure(uri, f"unknown scheme {scheme!r}; MLflow knows {KNOWN}") from error


def _within(seconds: float, uri: str, ask: Callable[[], T]) -> None:
    """Ask in a thread that may be left behind: name resolution and some drivers know no time limit."""
    outcome: list[BaseException | None] = []

    def work() -> None:
        try:
            ask()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    error = outcome[0] if outcome else TimeoutError(f"timed out after {seconds:.0f} s")
    if error is not None:
        raise failure(uri, explain(error)) from error
