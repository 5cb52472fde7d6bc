"""Fixtures of the ledger's tests: each has a store of its own, copied from one that was migrated once."""

from __future__ import annotations

import shutil

import pytest
from mlflow import MlflowClient

from qtrack.ledger import Ledger


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("empty store")
    Ledger.open(folder=folder)
    return folder / "mlflow.db"


@pytest.fixture
def ledger(empty_store, tmp_path):
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return Ledger.open()


@pytest.fixture
def client(ledger):
    return MlflowClient(ledger.uri)
