"""Opening MLflow's embedded database: alone, after a look at it, and never migrated without a copy.

Processes that create or migrate the same file together ruin it, so everything happens under a file lock.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from filelock import FileLock, Timeout
from mlflow.store.db.utils import _get_latest_schema_revision

from qtrack.ledger.preflight import explain, failure

log = logging.getLogger("qtrack")

LOCK_S = 5.0
CREATION_S = 60.0

T = TypeVar("T")


def opened(uri: str, path: Path, connect: Callable[[], T]) -> T:
    """Connect to the database at a path; raises StoreError where it cannot be created, opened or trusted."""
    if path.is_dir():
        raise failure(uri, f"{path} is a folder; name a file in it, such as {path / 'mlflow.db'}")
    with _alone(uri, path):
        if path.exists():
            _check(uri, path)
            _keep_copy(path)
        return connect()


@contextmanager
def _alone(uri: str, path: Path) -> Iterator[None]:
    lock = FileLock(f"{path}.lock", timeout=CREATION_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise failure(uri, f"another process has held {lock.lock_file} for {CREATION_S:.0f} s") from error
    except OSError as error:
        # Where nothing can be written there is no lock, and what exists can be read, for nobody migrates it.
        if not path.exists():
            raise failure(uri, f"cannot create {explain(error)}") from error
    try:
        yield
    finally:
        lock.release()


def _check(uri: str, path: Path) -> None:
    """Begin to write as MLflow will, which waits for a lock and fails for minutes where we take seconds."""
    try:
        with closing(_connect(path, "rw", LOCK_S)) as database:
            database.execute("PRAGMA schema_version").fetchone()
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except sqlite3.Error as error:
        if "readonly" not in str(error):  # which may still be read
            raise failure(uri, explain(error)) from error


def _keep_copy(path: Path) -> None:
    """MLflow migrates an older database as it opens it, and an older MLflow can then no longer read it."""
    found = _schema(path)
    copy = path.with_name(f"{path.name}.schema-{found}")
    if found is None or found == _latest() or copy.exists():
        return
    with closing(_connect(path, "ro")) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    log.warning("%s was written by another version of MLflow; kept a copy as %s", path.name, copy.name)


@cache
def _latest() -> str:
    """The revision that this MLflow writes, which it looks up in some seventy files."""
    return str(_get_latest_schema_revision())


def _schema(path: Path) -> str | None:
    """The revision of MLflow's schema; None where the file is empty or another's."""
    with closing(_connect(path, "ro")) as database:
        try:
            row = database.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.Error:
            return None
    return str(row[0]) if row else None


def _connect(path: Path, mode: str, wait_s: float = LOCK_S) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=wait_s)
