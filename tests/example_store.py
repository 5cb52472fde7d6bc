"""Fixtures: a copy of the example store, and MLflow's server on it."""

import shutil
from pathlib import Path

import pytest

from qtrack.cli.server import serving
from qtrack.ledger.store import sqlite_uri

EXAMPLE = Path(__file__).parent.parent / "mlruns_example"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """Somewhere else, at a path that has to be quoted."""
    folder = tmp_path_factory.mktemp("moved") / "a path" / "with spaces"
    shutil.copytree(EXAMPLE, folder)
    return folder


@pytest.fixture(scope="module")
def served(copy):
    """The address of a server on the copy."""
    with serving(sqlite_uri(copy / "mlflow.db")) as (address, _):
        yield address
