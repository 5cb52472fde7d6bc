"""``qtrack sensitivity`` on recorded runs and pipeline files, and the look of its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from recorded_tiny import command
from test_report_tables import GOLDEN

from qtrack import api
from qtrack.cli.render import all_drawn
from qtrack.errors import InputError
from qtrack.ranking import Correlation, Ranking, Share
from qtrack.report.sensitivity import ranked, screen
from qtrack.sensitivity import Sensitivity

pytest_plugins = ("recorded_campaign",)

WEIGHTS = {"mode": "weight_only", "weight": {"granularity": "per_channel"}}
SWEPT = Ranking(
    (
        Share("stem.conv", "Conv2d", 144, 0.0001, 0.002, 0.00004),
        Share("blocks.0.add", "add", 0, 0.0, 0.0, 0.0),
        Share("blocks.1.depthwise", "Conv2d", 576, 0.08, 0.174, 0.0611),
        Share("head", "Linear", 1330, float("nan"), None, None),
    ),
    160,
    320,
    0.24,
)
EXACT = SWEPT.with_exact(
    {"stem.conv": 0.003, "blocks.0.add": 0.001, "blocks.1.depthwise": 0.333},
    {"stem.conv": -0.0002, "blocks.0.add": 0.0, "blocks.1.depthwise": 0.187},
    3877,
    1.32,
)


# what it looks like


def test_the_ranking_looks_as_it_did():
    text = all_drawn(screen(EXACT), 100) + "\n"
    assert text == (GOLDEN / "sensitivity.txt").read_text(encoding="utf-8")


def test_without_the_exact_mode_there_are_neither_its_columns_nor_its_cost():
    table = ranked(SWEPT)
    assert len(table.columns) == 6
    assert [row[0] for row in table.rows] == ["blocks.1.depthwise", "stem.conv", "blocks.0.add", "head"]
    assert table.notes[-1] == "160 calibration samples, all layers in one sweep: 320 samples forward, 0.2 s"


def test_one_measure_has_none_to_be_compared_with():
    found = Ranking((Share("head", "Linear", 9, 0.1),), 4, 8, 0.1)
    assert len(list(screen(found))) == 1


def test_as_data_it_has_layers_worst_first_and_every_correlation():
    plain = EXACT.to_dict()
    assert plain["shares"][0]["layer"] == "blocks.1.depthwise"
    assert len(plain["correlations"]) == 10
    assert EXACT.correlations()[-1] == Correlation("alone", "back", 0.5)
    assert (plain["exact_forward_samples"], plain["forward_samples"]) == (3877, 4197)


# a run, and a pipeline


def test_a_run_is_ranked_on_as_many_threads_as_it_had(folder, monkeypatch):
    threads = []

    def exact(self, *given, real=Sensitivity.exact):
        threads.append(torch.get_num_threads())
        return real(self, *given)

    monkeypatch.setattr(Sensitivity, "exact", exact)
    torch.set_num_threads(2)
    done = command("sensitivity", "ptq", "--exact")
    assert done.exit_code == 0, done.output
    assert (threads, torch.get_num_threads()) == ([1], 2)
    assert "alone" in done.stdout
    assert "block.conv" in done.stdout
    assert "one layer at a time: " in done.stdout


def test_python_and_json_say_the_same(folder):
    found = api.sensitivity("ptq")
    plain = json.loads(command("sensitivity", "ptq", "--json").stdout)
    assert found.measures() == ("own", "output", "loss")
    assert plain["shares"] == found.to_dict()["shares"]
    assert plain["correlations"] == found.to_dict()["correlations"]
    assert (plain["samples"], plain["forward_samples"]) == (64, 128)


def write(**changes):
    plain = yaml.safe_load(Path("tiny.yaml").read_text())
    Path("plan.yaml").write_text(yaml.safe_dump(plain | changes))
    return "plan.yaml"


def test_of_a_pipeline_the_first_recipe_that_quantizes_is_ranked(folder):
    done = command("sensitivity", write(stages=["float", {"ptq": {"samples": 16}}, "per_channel"]), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["samples"] == 16


@pytest.mark.parametrize(
    ("recipe", "stage"),
    [
        ({"backend": "eager"}, "ptq"),
        ({"backend": "torchao", "default": WEIGHTS}, "weight_only"),
    ],
)
def test_a_backend_without_a_graph_is_refused_in_a_line(folder, recipe, stage):
    done = command("sensitivity", write(recipe=recipe, stages=[stage]))
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("qtrack: ")]
    backend = recipe["backend"]
    assert said == f"qtrack: backend {backend!r}: only graphs can be switched layer by layer: take fx or pt2e"
    assert (done.exit_code, done.stdout) == (3, "")


def test_a_model_all_of_whose_layers_stay_in_float_has_none_to_rank(folder):
    overrides = [{"layer": name, "scheme": {"mode": "float"}} for name in ("stem", "block", "pool", "head")]
    path = write(recipe={"engine": "x86", "overrides": overrides}, stages=["ptq"])
    with pytest.raises(InputError, match="no layer runs on integers, so there is none to rank"):
        api.sensitivity(path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "no run 'nothing'; there are float "),
        (["float"], "the run 'float' quantizes nothing"),
        (["ptq", "--task", "gone.py:Mine"], "gone.py: no such file"),
        ([], "Missing argument 'RUN|PIPELINE'"),
    ],
)
def test_what_cannot_be_ranked_is_one_line(folder, arguments, said):
    done = command("sensitivity", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
