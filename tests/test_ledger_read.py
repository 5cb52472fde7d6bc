"""Reading back: rows for comparison, references that people write, links, and damaged records."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from ledger_made import FLOAT, PTQ, STAGES, Lines, evaluation, outcome, record, result, rows, setting, spec
from mlflow.entities import Metric

from qtrack.errors import RunNotFound, StoreError
from qtrack.ledger import Strategy
from qtrack.stages import Target

pytest_plugins = ("ledger_store",)

NAMES = [
    *("run_id", "campaign", "pipeline", "stage", "metric", "value", "drop", "drop_low", "drop_high"),
    *("target_met", "sqnr_db", "size_bytes", "latency_ms", "float_layers", "worst_layer", "seconds"),
    *("evaluations", "recipe_digest", "verdict", "started"),
]


def artifact(client, run_id, path):
    return Path(client.get_run(run_id).info.artifact_uri) / path


def test_a_strategy_has_the_promised_fields_first():
    fields = list(Strategy.__dataclass_fields__)
    assert fields[: len(NAMES)] == NAMES
    assert {"status", "float_latency_ms", "latency_iqr_ms", "test_value", "max_drop"} < set(fields)


def test_strategies_are_those_of_the_latest_campaign_in_order(ledger):
    record(ledger)
    campaign = record(ledger, setting(name="second"))
    found = ledger.strategies()
    assert [strategy.stage for strategy in found] == list(STAGES)
    assert {strategy.campaign for strategy in found} == {campaign}


def test_a_row_holds_what_was_measured(ledger):
    ptq = result("ptq", 1, outcome(PTQ, (1, 1, 0, 0)), target=Target(max_drop=0.9, confidence=0.9))
    record(ledger, results={"ptq": ptq})
    row = next(strategy for strategy in ledger.strategies() if strategy.stage == "ptq").to_dict()
    expected = {
        "pipeline": "lines",
        "metric": "accuracy",
        "value": 0.5,
        "drop": 0.25,
        "drop_low": ptq.judged.drop.low,
        "drop_high": ptq.judged.drop.high,
        "target_met": True,
        "sqnr_db": 33.0,
        "size_bytes": 1112,
        "latency_ms": 2.0,
        "float_latency_ms": 3.0,
        "latency_iqr_ms": 0.1,
        "float_layers": 1,
        "worst_layer": "block.3",
        "seconds": 1.5,
        "evaluations": 1,
        "verdict": None,
        "status": "FINISHED",
        "test_value": 0.5,
        "max_drop": 0.01,
        "confidence": 0.95,
        "samples": 4,
        "experiment": "lines",
    }
    assert expected.items() <= row.items()
    assert row["started"].endswith("+00:00")
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize(
    ("scores", "met"), [((1, 1, 1, 0), True), ((0, 0, 0, 0), False), ((1, 1, 0, 0), None)]
)
def test_the_target_is_met_or_not_or_not_sure(ledger, scores, met):
    base = outcome()
    ptq = result(
        "ptq", 1, outcome(PTQ, scores * 25), outcome(scores=(1, 1, 1, 0) * 25), target=Target(max_drop=0.25)
    )
    record(ledger, setting(stages=("ptq",)), {"ptq": ptq})
    assert base.value == 0.75
    assert ledger.strategies()[0].target_met is met


def test_a_stage_that_failed_has_no_values_but_is_there(ledger):
    with (
        pytest.raises(ZeroDivisionError),
        ledger.campaign(setting()) as campaign,
        campaign.stage(spec("ptq"), 0),
    ):
        raise ZeroDivisionError
    (row,) = ledger.strategies()
    assert (row.stage, row.status, row.value, row.target_met) == ("ptq", "FAILED", None, None)


def test_infinity_in_the_store_is_read_as_no_value(ledger, client):
    record(ledger, setting(stages=("float",)))
    (row,) = ledger.strategies()
    client.log_batch(
        row.run_id, metrics=[Metric("drop_high", math.inf, 0, 1), Metric("sqnr_db", math.nan, 0, 1)]
    )
    (row,) = ledger.strategies()
    assert (row.drop_high, row.sqnr_db) == (None, None)


def test_a_metric_that_mlflow_cannot_name_is_read_back(ledger):
    class Scored(Lines):
        metric = "top-1 (%)"

    made = outcome(validation=evaluation([1, 0, 0, 0]))
    made = type(made)(**{**vars(made), "metric": "top-1 (%)"})
    record(ledger, setting(stages=("float",), task=Scored()), {"float": result("float", 0, made)})
    (row,) = ledger.strategies()
    assert (row.metric, row.value, row.test_value) == ("top-1 (%)", 0.25, 0.5)


def test_runs_are_found_by_the_names_that_people_use(ledger):
    first = record(ledger)
    record(ledger)
    float_, ptq, _ = ledger.strategies(campaign=first)
    latest = ledger.strategies()[1]
    found = ledger.strategies([ptq.run_id, ptq.run_id[:8], f"{first}/ptq", f"{first[:-2]}/float", "ptq"])
    assert [row.run_id for row in found] == [ptq.run_id, ptq.run_id, ptq.run_id, float_.run_id, latest.run_id]


def test_a_campaign_is_found_by_the_beginning_of_its_id(ledger):
    campaign = record(ledger, setting(name="with_an underscore"))
    record(ledger, setting(name="withXan-underscore"))
    assert campaign.startswith("with_an-underscore-")
    assert {row.campaign for row in ledger.strategies(campaign="with_a")} == {campaign}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("qat", r"no run 'qat'; there are float \(.{8}\), ptq \(.{8}\), per_channel \(.{8}\)"),
        ("abc", "no run 'abc'"),
        ("lines/qat", "no run 'lines/qat'; there are float"),
        ("other/ptq", "no campaign 'other'; there are lines-"),
        ("f" * 32, "no run 'ffff"),
        ("", "no run ''"),
        ("it's", 'no run "it\'s"'),
        ("a'b\"c/ptq", "no campaign"),
    ],
)
def test_an_unknown_run_is_one_line_with_what_there_is(ledger, reference, said):
    record(ledger)
    with pytest.raises(RunNotFound, match=said) as raised:
        ledger.layers(reference)
    assert "\n" not in str(raised.value)


def test_an_ambiguous_reference_lists_its_candidates(ledger, monkeypatch):
    first, second = record(ledger), record(ledger)
    with pytest.raises(RunNotFound, match="ambiguous") as raised:
        ledger.strategies(campaign="lines-")
    assert first in str(raised.value)
    assert second in str(raised.value)


def test_a_run_id_s_beginning_must_be_unique(ledger, monkeypatch):
    record(ledger)
    monkeypatch.setattr("qtrack.ledger.read.MIN_PREFIX", 0)
    with pytest.raises(RunNotFound, match="run '' is ambiguous: "):
        ledger.layers("")


def test_a_stage_that_was_recorded_twice_counts_once_by_name(ledger):
    with ledger.campaign(setting()) as campaign:
        for attempt in ("first", "second"):
            with campaign.stage(spec("ptq"), 0) as stage:
                stage.recipe(PTQ, None)
                stage.result(result("ptq", 0, outcome(PTQ, worst_first(attempt))))
    assert [row.stage for row in ledger.strategies()] == ["ptq", "ptq"]
    (row,) = ledger.strategies(["ptq"])
    assert row.value == 0.25


def worst_first(attempt):
    return {"first": (0, 0, 0, 0), "second": (1, 0, 0, 0)}[attempt]


def test_experiments_are_kept_apart(ledger):
    class Others(Lines):
        name = "others"

    record(ledger)
    record(ledger, setting(task=Others(), stages=("ptq",)))
    assert [row.experiment for row in ledger.strategies()] == ["others"]
    assert [row.stage for row in ledger.strategies(experiment="lines")] == list(STAGES)
    assert ledger.experiment_names() == ["Default", "lines", "others"]
    with pytest.raises(RunNotFound, match="no experiment 'nope'; there are Default, lines, others"):
        ledger.strategies(experiment="nope")


def test_an_empty_store_says_how_to_begin(ledger):
    with pytest.raises(RunNotFound, match=r"no campaign is recorded in sqlite:.*qtrack run PIPELINE"):
        ledger.strategies()
    with pytest.raises(RunNotFound, match="none are recorded"):
        ledger.layers("ptq")


def test_layers_and_recipe_and_pipeline_come_back_as_they_were(ledger):
    changed = PTQ.keeping_float("head")
    made = setting(stages=("ptq", {"qat": {"epochs": 3}}), task=Trainable())
    with ledger.campaign(made) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        stage.recipe(changed, None)
        stage.result(result("ptq", 0, outcome(changed, layers=rows(3))))
    layers = ledger.layers("ptq")
    assert [row["layer"] for row in layers] == ["block.0", "block.1", "block.2"]
    assert layers[1]["own_sqnr_db"] == 39.0
    assert layers[1]["saturation"] is None
    assert list(layers[0])[:4] == ["index", "layer", "type", "dtype"]
    assert ledger.recipe("ptq") == changed
    assert ledger.pipeline("ptq").stages[1].options == {"epochs": 3}


class Trainable(Lines):
    training = Lines.calibration

    def loss(self, output, batch):
        return output.mean()


def test_a_missing_artifact_is_one_line(ledger):
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        stage.begin()
    with pytest.raises(StoreError, match=r"the run 'ptq' \(.{8}, FINISHED\) has left no layers.json"):
        ledger.layers("ptq")
    with pytest.raises(StoreError, match=r"has left no recipe.yaml"):
        ledger.recipe("ptq")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"columns": ["a"], "data": [[1, 2]]}', b"\xff\xfe"])
def test_a_corrupt_artifact_is_one_line(ledger, client, content):
    record(ledger, setting(stages=("ptq",)))
    run_id = ledger.strategies()[0].run_id
    for path, read in (("layers.json", ledger.layers), ("recipe.yaml", ledger.recipe)):
        artifact(client, run_id, path).write_bytes(content)
        with pytest.raises(StoreError, match=path) as raised:
            read("ptq")
        assert "\n" not in str(raised.value)


def test_tags_that_someone_edited_do_not_break_the_table(ledger, client):
    record(ledger, setting(stages=("ptq",)))
    run_id = ledger.strategies()[0].run_id
    for tag in ("index", "max_drop", "confidence", "samples", "target_met"):
        client.set_tag(run_id, f"qtrack.{tag}", "rubbish")
    client.delete_tag(run_id, "qtrack.metric")
    client.delete_tag(run_id, "qtrack.stage")
    (row,) = ledger.strategies()
    assert (row.stage, row.value, row.max_drop, row.target_met) == ("ptq", None, None, None)


def test_links_lead_to_the_pages_that_compare(ledger, client):
    campaign = record(ledger)
    found = ledger.strategies()
    links = ledger.links(found)
    assert list(links) == ["table", "charts", "artifacts", "compare", "layers"]
    experiment = client.get_experiment_by_name("lines").experiment_id
    table = urlsplit(links["table"][1:])
    assert table.path == f"/experiments/{experiment}/runs"
    stages = f"tags.`qtrack.campaign` = '{campaign}' AND tags.`qtrack.kind` = 'stage'"
    assert parse_qs(table.query)["searchFilter"] == [stages]
    assert parse_qs(table.query)["orderByKey"] == ["metrics.`accuracy`"]
    assert parse_qs(urlsplit(links["charts"][1:]).query)["compareRunsMode"] == ["CHART"]
    compare = parse_qs(urlsplit(links["compare"][1:]).query)
    assert json.loads(compare["runs"][0]) == [row.run_id for row in found]
    layers = urlsplit(links["layers"][1:])
    assert unquote(layers.path) == "/metric/layers/own_sqnr_db"
    assert parse_qs(layers.query)["x_axis"] == ["step"]
    assert client.search_runs([experiment], parse_qs(table.query)["searchFilter"][0])
    assert ledger.links([]) == {}


def test_views_with_chosen_columns_are_kept_in_the_experiment(ledger, client):
    record(ledger)
    found = ledger.strategies()
    links = ledger.share_views(found)
    experiment = client.get_experiment_by_name("lines")
    for name in ("table", "charts"):
        key = parse_qs(urlsplit(links[name][1:]).query)["viewStateShareKey"][0]
        view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
        assert f"metrics.`{found[0].metric}`" in view["selectedColumns"]
        filtered = client.search_runs([experiment.experiment_id], view["searchFilter"])
        assert {run.info.run_id for run in filtered} == {strategy.run_id for strategy in found}
    assert re.fullmatch(view["chartsSearchFilter"], "size_bytes")
    assert ledger.share_views([]) == {}


def test_links_for_runs_of_several_campaigns_name_the_runs(ledger, client):
    record(ledger)
    first = ledger.strategies(["ptq"])
    record(ledger)
    both = first + ledger.strategies(["ptq"])
    query = parse_qs(urlsplit(ledger.links(both)["table"][1:]).query)
    found = client.search_runs(
        [client.get_experiment_by_name("lines").experiment_id], query["searchFilter"][0]
    )
    assert {run.info.run_id for run in found} == {row.run_id for row in both}


def test_all_pages_of_a_search_are_read(ledger, monkeypatch):
    monkeypatch.setattr("qtrack.ledger.client_source.PAGE", 2)
    monkeypatch.setattr("qtrack.ledger.read.sql_source", lambda store: None)
    record(ledger)
    assert len(ledger.strategies()) == 3
    assert FLOAT.digest == ledger.strategies()[0].recipe_digest
    assert len(ledger.experiment_names()) == 2


def test_runs_of_other_kinds_are_no_strategies(ledger, client):
    campaign = record(ledger)
    experiment = client.get_experiment_by_name("lines").experiment_id
    client.create_run(experiment, run_name="ptq")
    client.create_run(
        experiment, run_name="ptq", tags={"qtrack.campaign": campaign, "qtrack.kind": "reproduction"}
    )
    assert [row.stage for row in ledger.strategies()] == list(STAGES)
