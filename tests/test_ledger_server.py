"""The same through a real MLflow server, artifacts included."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from ledger_made import PTQ, STAGES, outcome, record, result, rows, setting, spec
from mlflow import MlflowClient

from qtrack.errors import StoreError
from qtrack.ledger import Ledger

pytest_plugins = ("ledger_store",)

START_S = 90


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory):
    """The address of a server with a store of its own."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", "sqlite:///mlflow.db"]
    command += ["--artifacts-destination", "./artifacts", "--serve-artifacts", "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    with (folder / "server.log").open("wb") as said:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=said, stderr=said, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(address, process)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def wait_until_healthy(address, process):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    pytest.fail("the server did not start")


def test_a_campaign_comes_back_from_a_server(server):
    ledger = Ledger.open(server)
    probes = [outcome(PTQ, (1, 0, 0, 0))]
    campaign = record(ledger, results={"ptq": result("ptq", 1, outcome(layers=rows(20)), probes=probes)})
    strategies = ledger.strategies()
    assert [(row.stage, row.status, row.campaign) for row in strategies] == [
        (stage, "FINISHED", campaign) for stage in STAGES
    ]
    assert len(ledger.layers("ptq")) == 20
    assert ledger.recipe("ptq").default.mode == "float"
    assert ledger.pipeline("ptq").name == "lines"
    assert ledger.layers(strategies[1].run_id[:8]) == ledger.layers(f"{campaign}/ptq")
    assert "#/experiments/" in ledger.links(strategies)["table"]
    run = MlflowClient(server).get_run(strategies[1].run_id)
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert run.data.tags["qtrack.model"] == "saved"


def test_a_failure_is_recorded_on_a_server(server):
    ledger = Ledger.open(server)
    with (
        pytest.raises(ZeroDivisionError),
        ledger.campaign(setting()) as campaign,
        campaign.stage(spec("ptq"), 0),
    ):
        raise ZeroDivisionError
    (row,) = ledger.strategies()
    assert row.status == "FAILED"
    path = MlflowClient(server).download_artifacts(row.run_id, "error.txt")
    assert "ZeroDivisionError" in Path(path).read_text()


def test_a_missing_or_corrupt_artifact_on_a_server_is_one_line(server):
    ledger = Ledger.open(server)
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        stage.begin()
    with pytest.raises(StoreError, match=r"has left no layers\.json"):
        ledger.layers("ptq")
    client = MlflowClient(server)
    client.log_text(ledger.strategies()[0].run_id, "{", "layers.json")
    with pytest.raises(StoreError, match="is corrupt"):
        ledger.layers("ptq")


def test_writing_one_stage_with_200_layers_takes_little_time(server):
    ledger = Ledger.open(server)
    before = ledger.seconds
    record(ledger, setting(stages=("ptq",)), {"ptq": result("ptq", 0, outcome(layers=rows(200)))})
    assert ledger.seconds - before < 3


def test_the_ui_of_a_server_can_show_an_artifact(server):
    ledger = Ledger.open(server)
    record(ledger, setting(stages=("ptq",)))
    row = ledger.strategies()[0]
    query = f"{server}/get-artifact?run_id={row.run_id}&path=layers.json"
    assert json.load(urllib.request.urlopen(query))["columns"][:2] == ["layer", "own_sqnr_db"]


def test_a_model_is_promoted_on_a_server(server):
    ledger = Ledger.open(server)
    record(ledger)
    promoted = ledger.promote("ptq", "lines", "champion")
    assert (promoted.version, promoted.created) == (1, True)
    assert ledger.promote("models:/lines@champion", "lines", "champion").created is False
