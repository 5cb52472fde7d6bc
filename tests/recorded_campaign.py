"""Fixtures: a campaign of the tiny task, recorded once for a test file, and the folder that it stands in."""

import sys

import pytest
import tiny
import torch
from recorded_tiny import write_task

import qtrack


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    write_task(folder)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(sys.modules, "tiny", tiny)
        return folder, qtrack.run("tiny.yaml")


@pytest.fixture
def folder(campaign, monkeypatch):
    monkeypatch.chdir(campaign[0])
    monkeypatch.setitem(sys.modules, "tiny", tiny)  # other tests load it from its file
    write_task(campaign[0])
    return campaign[0]
