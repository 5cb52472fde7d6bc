"""``mlflow run pipelines``: the same as ``qtrack run``, in the same store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from commands import command
from mlflow import MlflowClient
from recorded_tiny import write_task

PIPELINES = Path(__file__).parents[1] / "pipelines"
PROJECT = PIPELINES / "MLproject"


def mlflow_run(pipeline, **environment):
    """The command that stands in the project file, in the working folder, with another pipeline."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    line = f"mlflow run pipelines -e remediate -P pipeline={pipeline} --env-manager local"
    around = {**os.environ, "PATH": path, **environment}
    return subprocess.run(line.split(), capture_output=True, text=True, env=around)


@pytest.fixture
def checkout(alone):
    """A folder with a small pipeline and the real project file."""
    (alone / "pipelines").mkdir()
    write_task(alone / "pipelines")
    shutil.copy(PROJECT, alone / "pipelines")
    return alone


def runs(client, experiment):
    return client.search_runs([client.get_experiment_by_name(experiment).experiment_id])


def test_the_pipeline_is_digits_unless_another_is_named():
    entry = yaml.safe_load(PROJECT.read_text())["entry_points"]["remediate"]
    assert (PIPELINES / entry["parameters"]["pipeline"]["default"]).is_file()
    assert entry["command"].endswith("qtrack run {pipeline}")


@pytest.mark.slow
def test_its_runs_are_those_of_qtrack_run(checkout):
    done = mlflow_run("tiny.yaml")
    assert done.returncode == 0, done.stderr
    client = MlflowClient(f"sqlite:///{checkout}/mlflow.db")
    (outer,) = runs(client, "Default")
    assert outer.info.status == "FINISHED"
    assert (outer.data.params, outer.data.metrics) == ({"pipeline": "tiny.yaml"}, {})
    recorded = {run.info.run_name: run for run in runs(client, "tiny")}
    assert {"float", "ptq", "qat"} < set(recorded)
    assert all("mlflow.parentRunId" not in run.data.tags for run in recorded.values())
    again = command("run", "pipelines/tiny.yaml", "--json")
    assert again.exit_code == 0, again.stderr
    found = {row["stage"]: row["run_id"] for row in json.loads(again.stdout)}
    assert found == {stage: recorded[stage].info.run_id for stage in ("float", "ptq", "qat")}
    assert sorted(path.name for path in checkout.rglob("mlflow.db")) == ["mlflow.db"]


@pytest.mark.slow
def test_a_pipeline_that_cannot_be_run_fails_mlflow_s_run_as_well(checkout):
    done = mlflow_run("absent.yaml")
    assert done.returncode == 1
    assert "qtrack: absent.yaml" in done.stderr
    (outer,) = runs(MlflowClient(f"sqlite:///{checkout}/mlflow.db"), "Default")
    assert outer.info.status == "FAILED"


@pytest.mark.slow
def test_a_store_that_would_be_another_in_the_project_s_folder_is_refused(checkout):
    done = mlflow_run("tiny.yaml", MLFLOW_TRACKING_URI="sqlite:///runs.db")
    assert done.returncode == 1
    assert "qtrack: MLFLOW_TRACKING_URI=sqlite:///runs.db is relative: give the whole path" in done.stderr
    assert not (checkout / "pipelines" / "runs.db").exists()
