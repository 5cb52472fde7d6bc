"""The same through a real MLflow server, artifacts included."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from ledger_made import PTQ, STAGES, outcome, record, result, rows, setting, spec
from mlflow import MlflowClient
from servers import mlflow_server

from qtrack.errors import StoreError
from qtrack.ledger import Ledger

pytest_plugins = ("ledger_store",)


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory):
    """The address of a server with a store of its own."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with mlflow_server(folder) as address:
        yield address


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


def test_writing_one_stage_with_200_layers_takes_few_calls(server, monkeypatch):
    calls, real = [], MlflowClient.log_batch
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *a, **k: (calls.append(1), real(*a, **k)))
    ledger = Ledger.open(server)
    record(ledger, setting(stages=("ptq",)), {"ptq": result("ptq", 0, outcome(layers=rows(200)))})
    assert len(calls) == 4  # what the stage begins with, its result, and the notes of stage and campaign


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
