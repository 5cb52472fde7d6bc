"""Every test works in a folder and a tracking store of its own, with torch at one thread.

Pictures take more than half the time of recording a small stage: only tests that look at them draw them.
"""

import os
import signal

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_MODEL_CATALOG_URI"] = ""

import pytest
import torch

from qtrack.report import figures

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in a shell's background; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def stage_figures():
    """The function that draws a stage's figures, which no stage calls until a test puts it back."""
    real = figures.stage_figures
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "stage_figures", lambda result: ())
        yield real


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    torch.set_num_threads(1)
    return tmp_path
