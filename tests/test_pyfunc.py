"""Recorded models as MLflow's python_function: loaded, called and served."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from ledger_made import Lines, outcome
from mlflow.models import Model
from recorded import STAGES, artifact, holding, run_id
from torch import nn

from qtrack.errors import StoreError, TaskError
from qtrack.ledger import models

IMAGES = tiny.samples(8, 4)[0]


pytest_plugins = ("recorded_store",)


@pytest.fixture
def folder(recorded_folder):
    return recorded_folder


pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # MLflow's own, at its import


def loaded(stage, **options):
    return mlflow.pyfunc.load_model(f"runs:/{run_id(stage)}/model", **options)


def expected(recorded, stage, images=IMAGES):
    with torch.no_grad():
        return recorded[1][stage].model(images).numpy()


@pytest.mark.parametrize("stage", STAGES)
def test_mlflow_loads_what_was_recorded_and_it_gives_the_same_bits(folder, recorded, stage):
    found = loaded(stage).predict(IMAGES.numpy())
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, expected(recorded, stage))


def test_a_data_frame_with_a_column_of_flat_samples_does_as_well(folder, recorded):
    frame = pd.DataFrame({"image": IMAGES.reshape(8, -1).tolist()})
    assert np.array_equal(loaded("ptq").predict(frame), expected(recorded, "ptq"))


def test_it_runs_on_the_recipes_engine_and_leaves_torchs_own(folder, monkeypatch):
    model, seen = loaded("ptq"), []
    before = torch.backends.quantized.engine
    other = next(name for name in ("qnnpack", "onednn", "fbgemm") if name != before)
    torch.backends.quantized.engine = other
    monkeypatch.setattr(models, "run", lambda *_: (seen.append(torch.backends.quantized.engine), IMAGES)[1])
    try:
        model.predict(IMAGES.numpy())
        assert seen == ["x86"]
        assert torch.backends.quantized.engine == other
    finally:
        torch.backends.quantized.engine = before


def test_the_signature_leaves_the_batch_open(folder):
    signature = Model.load(str(artifact("ptq", "model"))).signature
    assert signature.inputs.inputs[0].shape == (-1, 1, 6, 6)
    assert signature.outputs.inputs[0].shape == (-1, tiny.CLASSES)


def test_requirements_are_pinned(folder):
    lines = artifact("ptq", "model/requirements.txt").read_text().splitlines()
    assert {line.partition("==")[0] for line in lines} == {"mlflow", "numpy", "pandas", "qtrack", "torch"}
    assert not any("+" in line for line in lines)


def test_a_task_that_is_elsewhere_is_one_line_and_can_be_named(folder, tmp_path, monkeypatch):
    run = run_id("ptq")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TaskError, match=r"recorded_task\.py: no such file; .*QTRACK_TASK=") as raised:
        mlflow.pyfunc.load_model(f"runs:/{run}/model")
    assert "\n" not in str(raised.value)
    monkeypatch.setenv("QTRACK_TASK", f"{folder}/recorded_task.py:Mine")
    assert mlflow.pyfunc.load_model(f"runs:/{run}/model")


@pytest.mark.parametrize(
    ("path", "change", "said"),
    [
        ("model/MLmodel", ("parameters: ", "parameters: 0"), r"state_dict\.pt has another digest"),
        ("model/MLmodel", ("recorded:", "other:"), "MLmodel has no recorded"),
        ("model/recipe.yaml", ("seed: 0", "seed: 1"), r"recipe\.yaml has another digest"),
    ],
)
def test_other_files_than_those_recorded_are_refused(folder, path, change, said):
    file = artifact("ptq", path)
    with holding(file, file.read_text().replace(*change)), pytest.raises(StoreError, match=said):
        loaded("ptq")


# inputs and outputs of other kinds


class Two(nn.Module):
    def forward(self, left, right):
        return {"sum": left + right, "difference": left - right}


class Pairs(Lines):
    def model(self):
        return Two()

    def calibration(self):
        return [(torch.ones(4, 3), torch.zeros(4, 3))]

    validation = calibration

    def inputs(self, batch):
        return batch


class Named(Pairs):
    def inputs(self, batch):
        return {"right": batch[1], "left": batch[0]}


def saved(task, tmp_path, monkeypatch):
    from qtrack.engine.digests import digest_of

    monkeypatch.setenv("QTRACK_TASK", f"{__file__}:{type(task).__name__}")
    model = task.model()
    digests = {"parameters": digest_of(model.state_dict())}
    made = replace(
        outcome(), build=lambda: model, example=task.inputs(task.calibration()[0]), digests=digests
    )
    assert models.save(task, made, tmp_path / "model") == "saved"
    return str(tmp_path / "model")


@pytest.mark.parametrize("task", [Pairs(), Named()])
def test_several_inputs_and_outputs_go_by_name(tmp_path, monkeypatch, task):
    model = mlflow.pyfunc.load_model(saved(task, tmp_path, monkeypatch))
    ones = np.ones((2, 3), np.float32)
    found = model.predict({"left": 3 * ones, "right": ones})
    assert {name: array.tolist() for name, array in found.items()} == {
        "sum": (4 * ones).tolist(),
        "difference": (2 * ones).tolist(),
    }


class Scaled(Pairs):
    def model(self):
        return nn.LeakyReLU()

    def inputs(self, batch):
        return (batch[0].bfloat16(),)


def test_a_model_that_mlflow_cannot_feed_is_saved_and_no_mlflow_model(tmp_path, monkeypatch, caplog):
    with caplog.at_level("INFO", "qtrack"):
        folder = Path(saved(Scaled(), tmp_path, monkeypatch))
    assert "is no MLflow model" in caplog.text
    assert {file.name for file in folder.iterdir()} == {"state_dict.pt", "example.pt", "recipe.yaml"}


# serving


@contextmanager
def served(run):
    """``mlflow models serve`` on a free port; ended with its workers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("-m", f"runs:/{run}/model", "--env-manager", "local", "--host", "127.0.0.1", "--workers", "1")
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "models", "serve", *options, "--port", str(port)],
        env=os.environ | paths | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield f"http://127.0.0.1:{port}", server
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def answered(address, body):
    request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def wait_for(address, server):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            return urllib.request.urlopen(f"{address}/ping", timeout=2).close()
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the server did not answer")


@pytest.mark.slow
def test_mlflow_serves_a_recorded_model(folder, recorded):
    with served(run_id("ptq")) as (address, server):
        wait_for(address, server)
        found = answered(f"{address}/invocations", {"inputs": IMAGES.tolist()})
    assert found == {"predictions": expected(recorded, "ptq").tolist()}
