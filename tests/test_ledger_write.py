"""What a campaign leaves in a real MLflow store, read back with MLflow's own client."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ledger_made import FLOAT, PTQ, evaluation, outcome, record, result, rows, setting, spec
from mlflow import MlflowClient
from mlflow.utils.validation import _validate_metric_name

from qtrack.ledger import Ledger, models
from qtrack.ledger.files import plain
from qtrack.ledger.names import metric_key, params_of, task_metric_key
from qtrack.recipe import Recipe, recipe_from_yaml

pytest_plugins = ("ledger_store",)


def runs_of(client, name="lines"):
    experiment = client.get_experiment_by_name(name)
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return {run.data.tags.get("qtrack.stage", "campaign"): run for run in found}


def read(client, run, path):
    return Path(client.download_artifacts(run.info.run_id, path)).read_text()


def one_stage(ledger, made):
    """Record a campaign of one stage."""
    record(ledger, setting(stages=("float",)), {"float": replace(made, name="float", index=0)})


def test_each_stage_is_a_flat_run_with_complete_tags(ledger, client):
    campaign = record(ledger)
    runs = runs_of(client)
    assert list(runs) == ["campaign", "float", "ptq", "per_channel"]
    tags = runs["ptq"].data.tags
    assert "mlflow.parentRunId" not in tags
    assert tags["qtrack.kind"] == "stage"
    assert tags["qtrack.campaign"] == campaign == runs["campaign"].data.tags["qtrack.campaign"]
    assert (tags["qtrack.stage"], tags["qtrack.index"], tags["qtrack.pipeline"]) == ("ptq", "1", "lines")
    assert tags["qtrack.recipe_digest"] == FLOAT.digest
    assert (tags["qtrack.backend"], tags["qtrack.engine"]) == ("fx", "x86")
    assert (tags["qtrack.git_commit"], tags["qtrack.git_dirty"]) == ("c0ffee" * 6, "true")
    assert len(tags["qtrack.task_fingerprint"]) == 64
    assert tags["qtrack.worst_layer"] == "block.3"
    assert tags["qtrack.model"] == "saved"
    assert runs["ptq"].info.run_name == "ptq"
    assert all(run.info.status == "FINISHED" for run in runs.values())


def test_metrics_of_a_stage_can_be_read_back(ledger, client):
    record(ledger, results={"ptq": result("ptq", 1, outcome(scores=(1, 1, 0, 0)))})
    metrics = runs_of(client)["ptq"].data.metrics
    expected = {
        "accuracy": 0.5,
        "drop": 0.25,
        "sqnr_db": 33.0,
        "size_bytes": 1112,
        "latency_ms": 2.0,
        "latency_iqr_ms": 0.1,
        "float_latency_ms": 3.0,
        "float_layers": 1,
        "seconds": 1.5,
        "seconds/compare": 1.0,
        "evaluations": 1,
        "forward_samples": 100,
        "test_accuracy": 0.5,
        "layers/worst_own_sqnr_db": 37.0,
        "layers/median_own_sqnr_db": 38.5,
    }
    assert expected.items() <= metrics.items()
    assert metrics["drop_low"] < 0.25 < metrics["drop_high"]


def test_layers_are_steps_of_one_curve(ledger, client):
    one_stage(ledger, result(made=outcome(layers=(*rows(200), *rows(1, own_sqnr_db=None)))))
    run = runs_of(client)["float"]
    history = client.get_metric_history(run.info.run_id, "layers/own_sqnr_db")
    assert [(point.step, point.value) for point in history][:2] == [(0, 40.0), (1, 39.0)]
    assert len(history) == 200
    assert len(json.loads(read(client, run, "layers.json"))["data"]) == 201


def test_what_is_not_finite_is_left_out(ledger, client):
    layers = rows(2, own_sqnr_db=math.inf, sqnr_db=math.nan)
    made = outcome(
        layers=layers, sqnr_db=math.inf, validation=evaluation([1, 0, 0, 0], extra={"f1": math.nan})
    )
    one_stage(ledger, result(made=made))
    run = runs_of(client)["float"]
    assert all(math.isfinite(value) and abs(value) < 1e300 for value in run.data.metrics.values())
    assert not {"sqnr_db", "f1", "layers/own_sqnr_db", "layers/sqnr_db"} & run.data.metrics.keys()
    assert "Infinity" not in read(client, run, "layers.json")
    assert "NaN" not in read(client, run, "layers.json")


def test_metrics_of_the_task_cannot_overwrite_our_own(ledger, client):
    made = outcome(
        validation=evaluation([1, 1, 0, 0], extra={"F1 (macro)": 0.7, "drop": 0.9, "accuracy": 0.1})
    )
    one_stage(ledger, result(made=made))
    metrics = runs_of(client)["float"].data.metrics
    assert metrics["F1 _macro_"] == 0.7
    assert (metrics["task/drop"], metrics["drop"]) == (0.9, 0.25)
    assert (metrics["extra/accuracy"], metrics["accuracy"]) == (0.1, 0.5)


@given(st.text(max_size=300))
def test_every_name_becomes_a_key_that_mlflow_takes(name):
    _validate_metric_name(metric_key(name))
    _validate_metric_name(task_metric_key(name))
    assert metric_key(metric_key(name)) == metric_key(name)


def test_params_are_few_and_short():
    params = params_of(Recipe(), 64)
    assert params == {
        "mode": "static",
        "bits": "w8a8",
        "seed": "0",
        "granularity": "per_tensor",
        "weight_observer": "min_max",
        "activation_observer": "histogram",
        "qat_epochs": "0",
        "reduce_range": "false",
        "calibration_samples": "64",
    }
    assert params_of(Recipe().with_mode("float"), 64) == {"mode": "float", "bits": "w32", "seed": "0"}
    assert params_of(Recipe().with_mode("dynamic"), 64)["bits"] == "w8a8"
    transformed = Recipe(transforms=("equalize", "correct_bias"))
    assert params_of(transformed, 64)["transforms"] == "equalize+correct_bias"


def test_the_recipe_is_on_record_before_the_work_begins(ledger, client):
    changed = PTQ.with_weights(granularity="per_channel").keeping_float("head")
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        stage.recipe(changed, PTQ)
        run = runs_of(client)["ptq"]
        assert run.info.status == "RUNNING"
        assert run.data.params["granularity"] == "per_channel"
        assert run.data.tags["qtrack.recipe_digest"] == changed.digest
        assert recipe_from_yaml(read(client, run, "recipe.yaml")) == changed
        assert json.loads(read(client, run, "environment.json"))["python"] == "3.11"
        assert read(client, run, "recipe.diff").splitlines()[1:] == [
            "+++ ptq",
            "-default.weight.granularity: per_tensor",
            "+default.weight.granularity: per_channel",
            "+overrides: {layer: head, scheme: {mode: float}}",
        ]


def test_the_stage_that_a_recipe_came_from_is_tagged(ledger, client):
    with ledger.campaign(setting()) as campaign:
        with campaign.stage(spec("ptq"), 0) as stage:
            stage.recipe(PTQ, None)
            stage.result(result("ptq", 0, outcome(PTQ)))
        with campaign.stage(spec("per_channel"), 1) as stage:
            stage.recipe(FLOAT, PTQ)
    runs = runs_of(client)
    assert runs["ptq"].data.tags["qtrack.started_from"] == "pipeline"
    assert runs["per_channel"].data.tags["qtrack.started_from"] == "ptq"


def test_data_sets_are_inputs_with_their_digests(ledger, client):
    made = setting()
    record(ledger, made)
    inputs = runs_of(client)["ptq"].inputs.dataset_inputs
    found = {each.tags[0].value: each.dataset.digest for each in inputs}
    assert found == {name: split.digest[:36] for name, split in made.splits.items()}


def test_tables_and_fingerprint(ledger, client):
    probes = [outcome(PTQ, (1, 0, 0, 0)), outcome(PTQ.keeping_float("head"), (1, 1, 0, 0))]
    record(ledger, results={"ptq": result("ptq", 1, outcome(PTQ, (1, 1, 0, 0)), probes=probes)})
    run = runs_of(client)["ptq"]
    assert {table["path"] for table in json.loads(run.data.tags["mlflow.loggedArtifacts"])} == {
        "layers.json",
        "search.json",
    }
    table = client.load_table(run.info.experiment_id, "search.json", [run.info.run_id])
    assert list(table["step"]) == [1, 2]
    assert list(table["drop"]) == [0.5, 0.25]
    assert list(table["meets_target"]) == ["not sure", "not sure"]
    samples = pd.read_parquet(client.download_artifacts(run.info.run_id, "samples.parquet"))
    assert list(samples.columns) == [
        "index",
        "score",
        "float_score",
        "label",
        "prediction",
        "float_prediction",
    ]
    assert list(samples["score"]) == [1, 1, 0, 0]
    assert list(samples["float_prediction"]) == [0, 1, 0, 0]
    fingerprint = json.loads(read(client, run, "fingerprint.json"))
    assert fingerprint["recipe"] == PTQ.digest
    assert fingerprint["task"] == run.data.tags["qtrack.task_fingerprint"]
    assert fingerprint["parameters"] == "p" * 64
    assert fingerprint["scales"] == {"block.0": {"scale": [0.5], "zero_point": [3]}}
    assert fingerprint["splits"]["calibration"]["samples"] == 4
    cost = json.loads(read(client, run, "cost.json"))
    assert (cost["probes"], cost["total"]["evaluations"]) == (2, 3)


def test_samples_without_classes_have_empty_columns(ledger, client):
    made = outcome(validation=replace(evaluation([0.1, 0.2, 0.3, 0.4]), labels=None, predictions=None))
    one_stage(ledger, result(made=made, baseline=made))
    path = client.download_artifacts(runs_of(client)["float"].info.run_id, "samples.parquet")
    assert pd.read_parquet(path)["label"].isna().all()


def test_the_campaign_keeps_pipeline_log_and_summary(ledger, client):
    with ledger.campaign(setting(source="name: lines  # by hand\n")) as campaign:
        logging.getLogger("qtrack").warning("calibration and validation share 3 samples")
        logging.getLogger("qtrack.below").info("a detail")
        campaign.summary([result("ptq")])
    run = runs_of(client)["campaign"]
    assert read(client, run, "pipeline.yaml") == "name: lines  # by hand\n"
    assert yaml.safe_load(read(client, run, "pipeline_resolved.yaml"))["target"]["max_drop"] == 0.01
    assert "WARNING calibration and validation share 3 samples" in read(client, run, "log.txt")
    assert "INFO a detail" in read(client, run, "log.txt")
    assert json.loads(read(client, run, "summary.json"))[0]["stage"] == "ptq"
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith("All stages: `qtrack compare --campaign ")  # MLflow folds a long table away
    assert "| ptq | accuracy 0.7500" in note


def test_a_stage_has_a_log_of_its_own_with_its_warnings(ledger, client):
    record(ledger, results={"ptq": result("ptq", 1, outcome(warnings=("saturation is likely",)))})
    runs = runs_of(client)
    assert "WARNING ptq: saturation is likely" in read(client, runs["ptq"], "log.txt")
    assert "saturation" not in read(client, runs["per_channel"], "log.txt")
    assert "saturation" in read(client, runs["campaign"], "log.txt")


def test_warnings_still_reach_people_who_set_up_no_logging(ledger, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    with ledger.campaign(setting()):
        logging.getLogger("qtrack").warning("mind the gap")
    assert capsys.readouterr().err == "mind the gap\n"


def test_the_logger_is_left_as_it_was(ledger):
    logger = logging.getLogger("qtrack")
    before = (logger.level, list(logger.handlers))
    with ledger.campaign(setting()):
        pass
    assert (logger.level, list(logger.handlers)) == before


def test_curves_are_written_in_batches(ledger, client, monkeypatch):
    calls = []
    monkeypatch.setattr(
        MlflowClient, "log_batch", lambda self, run_id, **batch: calls.append(len(batch["metrics"]))
    )
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        for step in range(450):
            stage.report("train/loss", 1 / (step + 1), step)
    assert calls == [200, 200, 50, 0]  # the last is the note of the campaign


def test_points_of_a_curve_can_be_read_back(ledger, client, caplog):
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        for step in range(5):
            stage.report("search/top-1 [%]", float(step), step)
        stage.report("train/loss", math.nan, 3)
    run = runs_of(client)["ptq"]
    history = client.get_metric_history(run.info.run_id, "search/top-1 ___")
    assert [(point.step, point.value) for point in history] == [(step, step) for step in range(5)]
    assert "train/loss" not in run.data.metrics
    assert "train/loss is nan at step 3" in caplog.text


def test_the_heartbeat_moves_by_itself(ledger, client, monkeypatch):
    from qtrack.ledger import heart

    monkeypatch.setattr(heart, "BEAT_S", 0.05)
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        stage.begin()
        monkeypatch.setattr(heart, "_now", lambda: "later")
        time.sleep(0.3)
        assert {run.data.tags["qtrack.heartbeat"] for run in runs_of(client).values()} == {"later"}


def test_more_values_than_mlflow_takes_at_once(ledger, client):
    one_stage(ledger, result(made=outcome(layers=rows(700))))
    run = runs_of(client)["float"]
    assert len(client.get_metric_history(run.info.run_id, "layers/weight_sqnr_db")) == 700
    assert run.data.metrics["accuracy"] == 0.75


def interrupted(ledger, error, before=lambda stage: None):
    """Record a stage in whose midst this is raised."""
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        before(stage)
        raise error


def test_an_exception_ends_stage_and_campaign_as_failed(ledger, client):
    def begin(stage):
        stage.recipe(PTQ, None)
        stage.report("train/loss", 0.5, 1)

    with pytest.raises(ZeroDivisionError):
        interrupted(ledger, ZeroDivisionError("with postgresql://me:hush@host/db"), begin)
    runs = runs_of(client)
    assert {name: run.info.status for name, run in runs.items()} == {"campaign": "FAILED", "ptq": "FAILED"}
    for run in runs.values():
        error = read(client, run, "error.txt")
        assert error.startswith("Traceback")
        assert error.endswith("ZeroDivisionError: with postgresql://me:***@host/db\n")
    assert runs["ptq"].data.metrics["train/loss"] == 0.5
    assert runs["ptq"].data.tags["qtrack.recipe_digest"] == PTQ.digest


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_ctrl_c_ends_stage_and_campaign_as_killed(ledger, client, interruption):
    with pytest.raises(interruption):
        interrupted(ledger, interruption())
    assert {run.info.status for run in runs_of(client).values()} == {"KILLED"}


def test_figures_are_drawn_by_whoever_is_asked(ledger, client):
    from matplotlib.figure import Figure

    ledger = Ledger.open(figures=lambda made: [(f"{made.name}_layers", Figure())])
    record(ledger)
    names = [file.path for file in client.list_artifacts(runs_of(client)["ptq"].info.run_id, "figures")]
    assert names == ["figures/ptq_layers.png"]


def test_a_figure_that_fails_is_a_warning(ledger, client, caplog):
    record(Ledger.open(figures=lambda made: 1 / 0))
    assert runs_of(client)["ptq"].info.status == "FINISHED"
    assert "a figure could not be drawn: ZeroDivisionError" in caplog.text


def test_a_saved_model_gives_the_same_outputs(ledger, client):
    from tiny import Tiny, trained

    from qtrack.engine import execute, settled

    trained()
    task = Tiny()
    made = execute(task, settled(Recipe()), thorough=False)
    stage = result("float", 0, made, made)
    record(ledger, setting(stages=("float",), task=task), {"float": stage})
    run = runs_of(client, "tiny")["float"]
    assert run.data.tags["qtrack.model"] == "saved"
    folder = Path(client.download_artifacts(run.info.run_id, "model"))
    loaded = models.load(task, folder)
    example = torch.load(folder / "example.pt", weights_only=True)
    assert torch.equal(loaded(*example), made.model(*made.example))


def test_a_model_that_cannot_be_read_back_is_not_called_saved(ledger, client, caplog):
    one_stage(ledger, result(made=outcome(PTQ)))  # its model is not what the recipe builds
    run = runs_of(client)["float"]
    assert run.data.tags["qtrack.model"].startswith("not saved: ")
    assert "model" not in [file.path for file in client.list_artifacts(run.info.run_id)]
    assert "the model is not saved" in caplog.text
    assert run.info.status == "FINISHED"


def test_the_fingerprint_tells_data_and_weights_apart(ledger):
    from qtrack.ledger.write import task_fingerprint

    made = setting()
    other = replace(
        made, splits={**made.splits, "validation": replace(made.splits["validation"], digest="0" * 64)}
    )
    weights = made.plan.task.model().state_dict()
    retrained = {name: value + 1 for name, value in weights.items()}
    fingerprint = task_fingerprint(made, weights)
    assert fingerprint == task_fingerprint(setting(name="another pipeline"), weights)
    assert fingerprint not in (task_fingerprint(other, weights), task_fingerprint(made, retrained))


def test_secrets_do_not_reach_the_record(ledger, client):
    source = "name: lines\nuri: https://me:hush@host/x\napi_key: 'hush hush'\n"
    record(ledger, setting(source=source))
    text = read(client, runs_of(client)["campaign"], "pipeline.yaml")
    assert "hush" not in text
    assert "name: lines" in text


def test_the_time_spent_in_mlflow_is_counted(ledger):
    before = ledger.seconds
    record(ledger)
    assert before < ledger.seconds < before + 5


def test_a_user_s_own_active_run_is_not_touched(ledger, client, monkeypatch):
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", ledger.uri)
    with mlflow.start_run() as own:
        record(ledger)
        assert mlflow.active_run().info.run_id == own.info.run_id
    assert client.get_run(own.info.run_id).data.metrics == {}
    assert mlflow.get_tracking_uri() == ledger.uri


def test_plain_data_survives_strict_json():
    import numpy as np

    data = {"a": np.float32(0.5), "b": [math.nan, np.int64(3)], 4: np.array([1.5, math.inf]), "c": {1, 2}}
    assert json.loads(json.dumps(plain(data), allow_nan=False)) == {
        "a": 0.5,
        "b": [None, 3],
        "4": [1.5, None],
        "c": [1, 2],
    }
