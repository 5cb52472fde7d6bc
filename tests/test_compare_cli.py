"""``qtrack compare`` with its options, on a real campaign."""

import csv
import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from recorded_tiny import artifact, command

from qtrack import Ledger

pytest_plugins = ("recorded_campaign",)


def read(*arguments):
    done = command("compare", *arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_json_says_more_than_it_did(folder):
    for row in json.loads(read("--json")):
        assert row["forward_samples"] > 0
        assert isinstance(row["pareto"], bool)
        assert row["samples_needed"] is None or row["samples_needed"] > 200


def test_only_what_differs_between_the_recipes_is_shown(folder):
    rows = json.loads(read("ptq", "qat", "--only-diff", "--json"))
    fields = {row["field"] for row in rows}
    assert {"training.epochs", "default.weight.observer.kind"} <= fields
    assert "backend" not in fields
    epochs = {row["value"]: row["stages"] for row in rows if row["field"] == "training.epochs"}
    assert epochs == {None: ["ptq"], "1": ["qat"]}
    assert "training.epochs" in read("--only-diff")


def test_classes_are_counted_on_the_recorded_samples(folder):
    rows = [row for row in json.loads(read("--by", "class", "--json")) if row["stage"] == "ptq"]
    found = Ledger.open().samples("ptq")
    change = found.quantized.scores - found.baseline.scores
    assert sum(row["lost"] for row in rows) == (change < 0).sum()
    assert sum(row["gained"] for row in rows) == (change > 0).sum()
    assert sum(row["samples"] for row in rows) == 200


def test_flips_are_the_samples_that_differ(folder):
    rows = json.loads(read("--flips", "ptq", "qat", "--json"))
    ptq, qat = (Ledger.open().samples(stage).quantized for stage in ("ptq", "qat"))
    assert [row["index"] for row in rows] == (ptq.predictions != qat.predictions).nonzero()[0].tolist()
    assert all(row["first_prediction"] == ptq.predictions[row["index"]] for row in rows)


def test_a_run_has_no_flips_against_itself(folder):
    done = command("compare", "--flips", "ptq", "ptq")
    assert done.stderr == "0 of 200 samples differ: 0 better, 0 worse, 0 other in ptq " + (
        f"{Ledger.open().strategies(['ptq'])[0].run_id[:8]}\n"
    )


def test_tags_choose_and_fields_sort(folder):
    rows = json.loads(read("--filter", "qtrack.engine=x86", "--sort", "size_bytes:desc", "--json"))
    sizes = [row["size_bytes"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    assert {"ptq", "qat"} <= {row["stage"] for row in rows}


def test_csv_has_a_line_for_each_strategy(folder):
    rows = list(csv.DictReader(StringIO(read("--csv"))))
    assert [row["stage"] for row in rows] == ["float", "ptq", "qat"]
    assert rows[0].keys() == json.loads(read("--json"))[0].keys()


@pytest.mark.parametrize("view", [[], ["--only-diff"], ["--by", "class"], ["--flips", "ptq", "qat"]])
def test_every_view_has_every_format(folder, view, tmp_path):
    assert read(*view, "--markdown").startswith("| ")
    assert read(*view, "--csv").count("\n") == 1 + len(json.loads(read(*view, "--json")))
    page = tmp_path / "page.html"
    assert read(*view, "--html", page) == ""
    assert "<table>" in page.read_text()
    assert ("<svg" in page.read_text()) == (not view)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--json", "--csv"], "choose one of --json, --csv, --markdown and --html"),
        (["--markdown", "--html", "x.html"], "choose one of --json, --csv, --markdown and --html"),
        (["--only-diff", "--by", "class"], "choose one of --only-diff, --by and --flips"),
        (["--flips", "ptq", "qat", "float"], "--flips names the two runs itself"),
        (["--flips", "ptq", "qat", "--sort", "value"], "--flips names the two runs itself"),
        (["--flips", "ptq", "nope"], "no run 'nope'"),
        (["--sort", "nope"], "--sort: no field 'nope'; there are run_id, campaign"),
        (["--filter", "nope=1"], "--filter: no field 'nope'; there are run_id, campaign"),
        (["--filter", "stage"], "--filter stage: write it as FIELD=VALUE"),
        (["--filter", "stage=nope"], "none of 3 strategies has stage=nope"),
        (["--html", "no/such/folder.html"], "No such file or directory"),
    ],
)
def test_wrong_options_are_one_line(folder, options, said):
    done = command("compare", *options)
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert done.stdout == ""


def test_samples_that_are_none_are_one_line(folder):
    path = artifact("ptq", "samples.parquet")
    kept = path.read_bytes()
    try:
        for content in (b"no parquet", b""):
            path.write_bytes(content)
            done = command("compare", "--by", "class")
            assert done.exit_code == 3
            assert done.stderr.startswith("qtrack: samples.parquet of the run 'ptq'")
            assert done.stderr.count("\n") == 1
    finally:
        path.write_bytes(kept)


def test_the_page_stands_where_it_was_asked_for(folder, tmp_path):
    done = command("compare", "--html", tmp_path / "c.html", "--plot", tmp_path / "c.svg")
    assert done.stderr.splitlines() == [f"wrote {tmp_path / 'c.html'}", f"wrote {tmp_path / 'c.svg'}"]
    assert {path.name for path in Path(tmp_path).iterdir()} >= {"c.html", "c.svg"}


def test_comparing_loads_no_torch(folder):
    code = "import sys; from qtrack.cli import main; main(['compare'], standalone_mode=False)"
    code += "; print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, check=True
    )
    assert done.stderr.splitlines()[-1] == "False"
