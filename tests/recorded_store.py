"""Fixtures: a campaign of every mode on the tiny network, recorded once."""

from __future__ import annotations

import sys

import pytest
import tiny
import torch
from recorded import write_pipeline

import qtrack


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """The folder of the campaign, with its task and its store, and what its stages came to."""
    folder = tmp_path_factory.mktemp("recorded")
    write_pipeline(folder)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setitem(sys.modules, "tiny", tiny)
        return folder, {result.name: result.outcome for result in qtrack.run("tiny.yaml")}


@pytest.fixture
def recorded_folder(recorded, monkeypatch):
    monkeypatch.chdir(recorded[0])
    monkeypatch.setitem(sys.modules, "tiny", tiny)  # other tests load it from its file
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{recorded[0]}/mlflow.db")
    return recorded[0]
