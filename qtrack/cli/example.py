"""The example store that comes with a checkout: a copy is shown, for MLflow may write into it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qtrack.errors import InputError

FOLDER = Path(__file__).resolve().parents[2] / "mlruns_example"


@contextmanager
def example_copy() -> Iterator[str]:
    """The URI of a copy in a temporary folder, which is gone at the end."""
    if not (FOLDER / "mlflow.db").is_file():
        raise InputError(f"no example store at {FOLDER}: it comes with a checkout, not with the package")
    from qtrack.ledger.store import sqlite_uri

    with tempfile.TemporaryDirectory(prefix="qtrack-example-") as folder:
        copy = Path(folder, FOLDER.name)
        shutil.copytree(FOLDER, copy)
        yield sqlite_uri(copy / "mlflow.db")
