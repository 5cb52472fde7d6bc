"""MLflow's own settings, where the user has not chosen them: silent, and not patient for minutes.

Retries wait 0, 4, 8 and 16 seconds here; MLflow's default of seven waits four minutes before it gives up.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
TIMEOUT_S = "MLFLOW_HTTP_REQUEST_TIMEOUT"

DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    RETRIES: "4",
    TIMEOUT_S: "30",
}

# What they report is either progress of a migration, or an error that we raise ourselves, in one line.
NOISY = ("mlflow.store.db.utils", "mlflow.store.tracking.sqlalchemy_store", "alembic")


def settle_environment() -> None:
    """Give MLflow these defaults; it reads some of them while it is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def silence_logs() -> None:
    """MLflow sets its loggers' levels while it is imported, so this comes after."""
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def hurried(retries: int = 1, timeout_s: int = 4) -> Iterator[None]:
    """Let MLflow's requests fail soon: before the work begins, and when it has failed already."""
    before = {name: os.environ.get(name) for name in (RETRIES, TIMEOUT_S)}
    os.environ.update({RETRIES: str(retries), TIMEOUT_S: str(timeout_s)})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
