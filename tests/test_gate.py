"""``qtrack gate``: a strategy against the promoted one, on a real campaign."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from recorded_tiny import artifact, command, edited

from qtrack import Ledger
from qtrack.api import gate, promote
from qtrack.difference import Side
from qtrack.gate import Gate
from qtrack.report.gate import gate_line
from qtrack.statistics import paired_drop

pytest_plugins = ("recorded_campaign",)


@pytest.fixture
def promoted(folder):
    promote("ptq", "tiny")
    return folder


@pytest.fixture
def scores():
    """A run's recorded scores, changed for a while: how many of the first are right."""
    kept = {}

    def change(stage, right):
        path = artifact(stage, "samples.parquet")
        kept.setdefault(path, path.read_bytes())
        table = pd.read_parquet(path)
        table["score"] = (np.arange(len(table)) < right).astype(float)
        table.to_parquet(path, index=False)

    yield change
    for path, content in kept.items():
        path.write_bytes(content)


def run_id(stage):
    return Ledger.open().strategies([stage])[0].run_id


def test_a_strategy_that_is_as_good_passes(promoted, scores):
    scores("qat", 200)
    scores("ptq", 199)
    done = command("gate", "qat", "--max-drop", "0.05")
    assert done.exit_code == 0, done.output
    sides = rf"qat 100.0% \({run_id('qat')[:8]}\) against ptq 99.5% \({run_id('ptq')[:8]}\)"
    assert re.match(rf"passed: {sides}, models:/tiny@champion: drop -0.5 \[", done.stdout)
    assert done.stdout.endswith("5.0 points allowed, 95% sure\n")


def test_one_that_is_surely_worse_fails_with_the_reason(promoted, scores):
    scores("ptq", 200)
    scores("qat", 160)
    done = command("gate", "qat", "--max-drop", "0.05")
    assert done.exit_code == 1
    assert done.stdout.startswith("worse: qat 80.0%")
    assert "drop 20.0 [" in done.stdout
    assert done.stdout.count("\n") == 1


def test_not_sure_fails_only_where_it_must_be_sure(promoted, scores):
    scores("ptq", 200)
    scores("qat", 198)
    done, strict = (command("gate", "qat", *more) for more in ([], ["--strict"]))
    assert (done.exit_code, strict.exit_code) == (0, 1)
    assert done.stdout == strict.stdout
    assert done.stdout.startswith("not sure: qat 99.0%")
    assert "1.0 points allowed, 95% sure; 200 samples are too few" in done.stdout
    found, _ = gate("qat")
    assert found.samples_needed is None  # the drop is just what is allowed
    found, _ = gate("qat", max_drop=0.015)
    assert found.passes is None
    assert found.samples_needed > 200


def test_more_confidence_asks_for_more(promoted, scores):
    scores("ptq", 200)
    scores("qat", 200)
    assert gate("qat", max_drop=0.012)[0].passes is True
    assert gate("qat", max_drop=0.012, confidence=0.999)[0].passes is None


def test_without_a_run_the_best_of_the_latest_campaign_is_held_against_it(promoted):
    found = json.loads(command("gate", "--json", "--max-drop", "1").stdout)
    assert found["strategy"]["stage"] in ("ptq", "qat")
    assert found["promoted"]["run_id"] == run_id("ptq")
    assert found["against"] == "models:/tiny@champion"
    assert found["passes"] is True
    assert found["drop"].keys() == {"value", "low", "high", "confidence", "samples"}


def test_the_promoted_one_passes_against_itself(promoted):
    done = command("gate", "ptq", "--max-drop", "0", "--strict")
    assert done.exit_code == 0
    assert "drop 0.0 [0.0, 0.0]" in done.stdout


@pytest.mark.parametrize("part", ["order", "labels"])
def test_other_validation_data_are_one_line(promoted, part):
    def change(data):
        data["ingredients"][f"data.validation.{part}"] = "other"

    with edited(artifact("ptq", "fingerprint.json"), change):
        done = command("gate", "qat")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert "and the promoted ptq" in done.stderr
    assert "are not comparable: validation h" in done.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["nope"], 2, "no run 'nope'"),
        (["--against", "nope"], 2, "no models:/tiny@nope in the registry"),
        (["--name", "nope"], 2, "no models:/nope@champion in the registry"),
        (["--max-drop", "nan"], 2, "--max-drop nan"),
    ],
)
def test_what_is_not_there_is_one_line(promoted, options, code, said):
    done = command("gate", *options)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_campaign_that_quantizes_nothing_has_no_best(promoted, monkeypatch):
    floating = Ledger.open().strategies(["float"])
    monkeypatch.setattr(Ledger, "strategies", lambda *_, **__: floating)
    done = command("gate")
    assert done.exit_code == 2
    assert "name a RUN" in done.stderr


def test_a_metric_that_is_no_share_has_no_points():
    before = np.linspace(30, 31, 50)
    drop = paired_drop(before, before - np.linspace(0.1, 0.3, 50))
    sides = Side("1" * 32, "ptq", "psnr", 30.5, 50), Side("2" * 32, "qat", "psnr", 30.3, 50)
    line = gate_line(Gate(*sides, drop, 0.1), "models:/m@champion")
    assert line.startswith(
        "worse: qat 30.30 (22222222) against ptq 30.50 (11111111), models:/m@champion: drop"
    )
    assert line.endswith("0.10 allowed, 95% sure")
