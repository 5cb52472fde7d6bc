"""A strategy's metric over time: made up points, and real campaigns."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import yaml
from recorded_tiny import PIPELINE, artifact, command, edited, write_task
from report_samples import strategy
from test_report_tables import same_as_golden

import qtrack
from qtrack import Ledger, history
from qtrack.errors import StoreError
from qtrack.history import Cause
from qtrack.recipe import Recipe
from qtrack.report.history import history_view
from qtrack.report.history_figure import history_figure
from qtrack.reproduction import Recorded, Result

pytest_plugins = ("recorded_campaign",)

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
RECIPE = Recipe(engine="x86")


def point(number, hits, stage="ptq", samples=720, **values):
    """A stage of the campaign of this number, with so many hits; the float model has 700."""
    drop = (700 - hits) / 720
    day = (BEGAN + timedelta(days=number)).isoformat(timespec="milliseconds")
    known = {"run_id": f"{stage}{number:0>8}", "campaign": f"digits-2026-{number:0>4}", "started": day}
    drops = (drop, drop - 0.01, drop + 0.01)
    return strategy(stage, hits / samples, drops, **{"samples": samples, **known, **values})


def recorded(run, hits, recipe=RECIPE, samples=720, **ingredients):
    """As its files would say."""
    scores = (np.arange(samples) < hits).astype(float)
    result = Result("p", "b", {}, {}, hits / samples, scores, None)
    known = {"data.validation.order": "o", "float_weights": "w", "source.task": "r", **ingredients}
    return Recorded(run, "ptq", "accuracy", recipe, known, result, ())


def changes(strategies, read):
    return [point.change for line in history.history(strategies, read) for point in line.points]


def nothing(run):
    raise AssertionError(f"{run} was read")


POINTS = [point(0, 640), point(1, 640), point(2, 690), point(3, 688), point(4, 500), point(5, 560)]
COARSE = RECIPE.with_weights(granularity="per_channel")
FILES = {
    "ptq00000001": recorded("1" * 32, 640),
    "ptq00000002": recorded("2" * 32, 690, COARSE),
    "ptq00000003": recorded("3" * 32, 688, COARSE),
    "ptq00000004": recorded("4" * 32, 500, COARSE, float_weights="a" * 64, **{"source.task": "s"}),
}
READ = FILES.__getitem__


def read(run):
    if run not in FILES:
        raise StoreError(f"the run {run} has left no samples.parquet")
    return FILES[run]


def test_each_stage_of_a_pipeline_has_a_line_of_its_own():
    found = history.history(
        [point(0, 640), point(0, 640, "qat"), point(1, 640), point(1, 640, pipeline="other"), point(2, 640)],
        nothing,
    )
    lines = {(line.pipeline, line.stage): len(line.points) for line in found}
    assert lines == {("digits", "ptq"): 3, ("digits", "qat"): 1, ("other", "ptq"): 1}


def test_what_did_not_move_and_what_could_be_chance_is_not_read():
    found = changes([point(0, 640), point(1, 640), point(2, 644), point(3, 640)], nothing)
    assert [change and change.value for change in found[:2]] == [None, 0.0]
    assert [change.significant for change in found[1:]] == [False] * 3


def test_a_change_beyond_chance_is_paired_and_explained():
    change = changes(POINTS[1:3], read)[1]
    assert (change.paired, change.significant, change.unpaired) == (True, True, "")
    assert change.value == pytest.approx(50 / 720)
    assert change.low > 0
    assert change.causes == (Cause("recipe", "default.weight.granularity", "per_tensor", "per_channel"),)


def test_flips_both_ways_may_make_a_change_chance():
    before, after = recorded("1" * 32, 640), recorded("2" * 32, 650)
    after = replace(after, result=after.result._replace(scores=after.result.scores[::-1].copy()))
    files = {"ptq00000000": before, "ptq00000001": after}
    (_, change) = changes([point(0, 640), point(1, 650)], files.__getitem__)
    assert change.paired
    assert not change.significant


def test_other_validation_samples_are_not_paired_and_that_is_said():
    files = {"ptq00000000": recorded("1" * 32, 640), "ptq00000001": recorded("2" * 32, 500, samples=600)}
    files["ptq00000001"].ingredients["data.validation.order"] = "other"
    (_, change) = changes([point(0, 640), point(1, 500, samples=600)], files.__getitem__)
    assert not change.paired
    assert "validation held other samples" in change.unpaired
    assert change.value == pytest.approx(500 / 600 - 640 / 720)
    assert change.low < change.value < change.high < 0
    assert [cause.kind for cause in change.causes] == ["data"]


def test_without_files_the_recorded_values_are_compared():
    (_, change) = changes([point(0, 640), point(1, 500)], read)
    assert change.significant
    assert change.unpaired == "the run ptq00000000 has left no samples.parquet"
    assert change.causes == ()


def test_a_metric_that_counts_no_hits_is_not_tested_without_files():
    points = [
        strategy("ptq", value, (0.1, 0.0, 0.2), run_id=f"r{value}", metric="psnr", started=BEGAN.isoformat())
        for value in (31.2, 30.1)
    ]
    (_, change) = changes(points, read)
    assert (change.low, change.significant) == (None, False)
    assert any(
        "1 changes could not be tested" in note
        for note in history_view(history.history(points, read)).table.notes
    )


def test_another_metric_is_no_change():
    assert changes([point(0, 640), point(1, 500, metric="f1")], nothing) == [None, None]


def test_only_the_latest_pairs_are_read(monkeypatch):
    monkeypatch.setattr(history, "MOST_PAIRS", 1)
    asked = []

    def noted(run):
        asked.append(run)
        return read(run)

    found = changes(POINTS[1:5], noted)
    assert asked == ["ptq00000003", "ptq00000004"]
    assert [change and change.unpaired for change in found] == [None, "only the latest 1 are read", "", ""]


def test_a_run_that_later_campaigns_refer_to_is_read_for_the_latest_pairs_alone(monkeypatch):
    monkeypatch.setattr(history, "MOST_PAIRS", 1)
    known = point(0, 640)
    again = [replace(known, campaign=f"c{n}", started=point(n, 0).started) for n in (2, 4)]
    asked = []
    changes(
        [known, point(1, 500), again[0], point(3, 500), again[1]],
        lambda run: asked.append(run) or FILES["ptq00000001"],
    )
    assert asked == ["ptq00000003", "ptq00000000"]


def test_ten_thousand_points_read_few_files_and_take_seconds():
    rng = np.random.default_rng(0)
    points = [point(i, int(hits), f"stage{i % 7}") for i, hits in enumerate(rng.integers(100, 700, 10_000))]
    files, asked = recorded("1" * 32, 640), []

    def noted(run):
        asked.append(run)
        return files

    began = time.perf_counter()
    found = history.history(points, noted)
    assert time.perf_counter() - began < 10
    assert sum(len(line.points) for line in found) == 10_000
    assert len(asked) <= 2 * history.MOST_PAIRS
    unread = [p.change for line in found for p in line.points if p.change and p.change.unpaired]
    assert all("only the latest 100 are read" in change.unpaired for change in unread)


# as a table, as a picture


def test_the_history_looks_as_it_did():
    same_as_golden("history.txt", history_view(history.history(POINTS, read)).table)


def test_the_history_fits_100_columns():
    points = [replace(p, campaign="digits-20260301-120000-ab12") for p in POINTS]
    assert history_view(history.history(points, read)).table.width <= 100


def test_of_many_causes_the_first_are_listed():
    other = (
        RECIPE.having(seed=1, engine="onednn")
        .with_weights(granularity="per_channel", bits=7)
        .keeping_float("head")
    )
    files = {"ptq00000000": recorded("1" * 32, 640), "ptq00000001": recorded("2" * 32, 500, other)}
    view = history_view(history.history([point(0, 640), point(1, 500)], files.__getitem__))
    assert any("more; qtrack diff has all" in line for _, line in view.table.headings)
    assert len(view.records[1]["causes"]) == 5


def test_lines_of_several_pipelines_name_theirs():
    lines = history.history([point(0, 640), point(1, 640, pipeline="other")], nothing)
    assert [line for _, line in history_view(lines).table.headings] == [
        "ptq (pipeline digits)",
        "ptq (pipeline other)",
    ]


def test_every_line_is_drawn(tmp_path):
    lines = history.history([*POINTS, point(3, 640, "$q_{$")], read)
    figure = history_figure(lines, "history of digits")
    figure.savefig(tmp_path / "h.png")
    assert len(figure.axes) == 2
    assert [text.get_text() for text in figure.axes[0].texts] == ["recipe", "weights, code", "not known"]
    assert history_figure([], "none") is None
    assert len(history_figure(lines * 20, "many").axes) == 30


# real campaigns


@contextmanager
def pipeline(folder, **changes):
    (folder / "tiny.yaml").write_text(yaml.safe_dump({**PIPELINE, **changes}))
    try:
        yield
    finally:
        write_task(folder)


@pytest.fixture
def coarse(folder):
    """A second campaign whose weights and activations have 2 bits."""
    if len(Ledger.open().finished("tiny")) < 5:
        default = {"mode": "static", "weight": {"bits": 2}, "activation": {"bits": 2}}
        with pipeline(folder, recipe={"engine": "x86", "default": default}, stages=["float", "ptq"]):
            qtrack.run("tiny.yaml", fresh=True)
    return folder


def test_a_changed_recipe_is_named_where_the_metric_moved(coarse):
    done = command("history", "--experiment", "tiny")
    assert done.exit_code == 0, done.output
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "recipe: default.weight.bits 8 > 2" in lines
    assert any(line.endswith("points on the same samples") for line in lines)
    rows = json.loads(command("history", "--stage", "ptq", "--json").stdout)
    assert [row["significant"] for row in rows] == [False, True]
    assert rows[1]["paired"]
    assert rows[1]["change"] == pytest.approx(rows[1]["value"] - rows[0]["value"])
    assert {(cause["kind"], cause["name"]) for cause in rows[1]["causes"]} == {
        ("recipe", "default.weight.bits"),
        ("recipe", "default.activation.bits"),
    }


def test_a_float_stage_that_did_not_move_has_no_change(coarse):
    rows = json.loads(command("history", "--stage", "float", "--json").stdout)
    assert [row["change"] for row in rows] == [None, 0.0]


def test_other_data_are_said_to_be_unpaired(coarse):
    def change(data):
        data["ingredients"]["data.validation.order"] = "other"

    with edited(artifact("ptq", "fingerprint.json"), change):
        row = json.loads(command("history", "--stage", "ptq", "--json").stdout)[1]
    assert row["unpaired"].startswith("not comparable: validation held other samples")
    assert ("data", "data.validation.order") in {(cause["kind"], cause["name"]) for cause in row["causes"]}


@pytest.mark.parametrize("ending", [".png", ".svg", ".html"])
def test_the_history_is_drawn_into_a_file(coarse, tmp_path, ending):
    path = tmp_path / f"history{ending}"
    done = command("history", "--plot", path)
    assert done.exit_code == 0, done.output
    assert path.stat().st_size > 5_000
    assert f"wrote {path}" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--experiment", "nope"], "no experiment 'nope'; there are "),
        (
            ["--stage", "nope"],
            "the experiment 'tiny' has no finished stage called 'nope'; there are float, ptq, qat",
        ),
        (["--plot", "h.gif"], "the name must end in one of .png, .svg, .html"),
    ],
)
def test_what_is_not_there_is_one_line(coarse, options, said):
    done = command("history", *options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_empty_store_has_no_history(alone):
    done = command("history", "--tracking-uri", f"sqlite:///{alone}/none.db")
    assert done.exit_code == 2
    assert "no campaign is recorded" in done.stderr
