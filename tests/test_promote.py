"""Recorded models in MLflow's registry: versions, aliases, lineage."""

import json

import mlflow
import numpy as np
import pytest
import tiny
import torch
from ledger_made import record
from mlflow import MlflowClient
from recorded import artifact, command, run_id

import qtrack
from qtrack import Ledger
from qtrack.api import promote, reproduce
from qtrack.errors import InputError, RunNotFound, StoreError

pytest_plugins = ("recorded_store", "ledger_store")


@pytest.fixture
def folder(recorded_folder):
    return recorded_folder


pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred")  # MLflow's own, at its import

IMAGES = tiny.samples(8, 4)[0]


@pytest.fixture
def name(request):
    """A model of the test's own: the store is shared."""
    return request.node.name.partition("[")[0][-60:].strip("_")


def versions(name):
    return MlflowClient(Ledger.open().uri).search_model_versions(f"name = '{name}'")


def test_a_run_becomes_a_version_with_an_alias(folder, name):
    done = command("promote", "ptq", "--name", name, "--alias", "champion")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"models:/{name}@champion  version 1  (new)\n"
    (version,) = versions(name)
    assert version.source == f"runs:/{run_id('ptq')}/model"
    assert version.run_id == run_id("ptq")


def test_a_version_says_where_it_comes_from(folder, recorded, name):
    promote("ptq", name)
    (version,) = versions(name)
    outcome = recorded[1]["ptq"]
    strategy = Ledger.open().strategies(["ptq"])[0]
    expected = {"recipe_digest": outcome.recipe.digest, "campaign": strategy.campaign, "stage": "ptq"}
    expected |= {"experiment": "tiny", "metric": "accuracy", "value": repr(outcome.value)}
    tags = {key.removeprefix("qtrack."): value for key, value in version.tags.items()}
    assert expected.items() <= tags.items()
    assert len(tags["task_fingerprint"]) == 64
    assert tags["target_met"] in ("yes", "no", "not sure")
    assert f"`qtrack reproduce {strategy.run_id}`" in version.description


def test_the_next_one_takes_the_alias_over(folder, name):
    promote("ptq", name)
    done = command("promote", "float", "--name", name)
    assert done.stdout == f"models:/{name}@champion  version 2  (was version 1, run {run_id('ptq')[:8]})\n"
    found = json.loads(command("promote", "dynamic", "--name", name, "--json").stdout)
    assert found == {
        "uri": f"models:/{name}@champion",
        "name": name,
        "alias": "champion",
        "version": 3,
        "run_id": run_id("dynamic"),
        "stage": "dynamic",
        "created": True,
        "previous_version": 2,
        "previous_run": run_id("float"),
    }


def test_a_run_is_one_version_however_often_it_is_promoted(folder, name):
    first, again = promote("ptq", name), promote("ptq", name)
    assert (first.version, first.created, again.version, again.created) == (1, True, 1, False)
    promote("float", name)
    back = promote("ptq", name)
    other = promote("ptq", name, "challenger")
    assert (back.version, back.previous_version, other.version) == (1, 2, 1)
    assert len(versions(name)) == 2


def test_mlflow_loads_the_champion(folder, recorded, name):
    promote("ptq", name)
    found = mlflow.pyfunc.load_model(f"models:/{name}@champion").predict(IMAGES.numpy())
    with torch.no_grad():
        assert np.array_equal(found, recorded[1]["ptq"].model(IMAGES).numpy())


@pytest.mark.parametrize("reference", ["models:/{}@champion", "models:/{}/1"])
def test_commands_take_a_version_for_a_run(folder, name, reference):
    promote("ptq", name)
    uri = reference.format(name)
    assert qtrack.load(uri)(IMAGES).shape == (8, tiny.CLASSES)
    assert reproduce(uri).verdict == "bit-identical"
    assert json.loads(command("compare", uri, "--json").stdout)[0]["stage"] == "ptq"


@pytest.mark.parametrize("uri", ["models:/none@champion", "models:/none/1", "models:/", "models:/a/b/c"])
def test_a_version_that_is_not_there_is_one_line(folder, uri):
    with pytest.raises(RunNotFound, match="in the registry; write models:/NAME@ALIAS") as raised:
        Ledger.open().recipe(uri)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a/b", "a:b", "", " a", "a\n", "..", "a\x1b[2J", "a" * 251, "a'b"])
def test_a_name_that_mlflow_cannot_hold_is_refused(folder, name):
    with pytest.raises(InputError, match="cannot name a model"):
        promote("ptq", name)


@pytest.mark.parametrize("alias", ["", "a b", "a/b", "é", "latest", "Latest", "v1", "a" * 251])
def test_an_alias_that_mlflow_cannot_hold_is_refused(folder, name, alias):
    with pytest.raises(InputError, match=r"--alias .* is (none|one that MLflow keeps)"):
        promote("ptq", name, alias)
    assert versions(name) == []


def test_a_run_that_did_not_finish_is_refused(ledger, client):
    record(ledger)
    run = ledger.strategies(["ptq"])[0].run_id
    client.update_run(run, "FAILED")
    done = command("promote", run, "--name", "lines")
    assert done.exit_code == 3
    assert (
        done.stderr == f"qtrack: the run 'ptq' ({run[:8]}) is FAILED; only a finished run can be promoted\n"
    )


def test_a_run_without_a_model_says_why(ledger, client):
    record(ledger)
    run = ledger.strategies(["ptq"])[0].run_id
    client.set_tag(run, "qtrack.model", "not saved: disk full")
    with pytest.raises(StoreError, match="has no saved model: not saved: disk full"):
        ledger.promote("ptq", "lines", "champion")


def test_a_model_that_is_none_of_mlflows_is_refused(folder, name):
    file = artifact("ptq", "model/MLmodel")
    kept = file.rename(file.with_name("away"))
    try:
        with pytest.raises(StoreError, match="is no MLflow model: it has no MLmodel"):
            promote("ptq", name)
    finally:
        kept.rename(file)
    assert versions(name) == []
