"""Commands that work on a store, on a real campaign of a tiny network."""

import json
import signal
import socket
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from commands import running
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from qtrack import Ledger
from qtrack.api import run as run_pipeline
from qtrack.cli import main
from qtrack.errors import StoreAway
from qtrack.recipe import recipe_from_yaml
from qtrack.report import figures

PIPELINE = {
    "name": "tiny",
    "task": "tiny_task.py:Mine",
    "target": {"max_drop": 0.05},
    "stages": ["float", "ptq", "per_channel"],
}
TASK = """\
import sys
sys.path.insert(0, {tests!r})
import tiny


class Mine(tiny.Tiny):
    def loss(self, output, batch):
        {loss}
"""
FIELDS = set(
    [
        "run_id",
        "campaign",
        "pipeline",
        "stage",
        "metric",
        "value",
        "drop",
        "drop_low",
        "drop_high",
        "target_met",
        "sqnr_db",
        "size_bytes",
        "latency_ms",
        "float_layers",
        "worst_layer",
        "seconds",
        "evaluations",
        "recipe_digest",
        "verdict",
        "started",
    ]
)
ROW = set(
    [
        "index",
        "layer",
        "type",
        "dtype",
        "params",
        "macs",
        "sqnr_db",
        "own_sqnr_db",
        "weight_sqnr_db",
        "cosine",
        "nmse",
        "max_abs_error",
        "saturation",
        "range_variation",
        "bad_samples",
    ]
)


def write_task(folder, loss="return super().loss(output, batch)", **changes):
    (folder / "tiny_task.py").write_text(TASK.format(tests=str(Path(__file__).parent), loss=loss))
    (folder / "tiny.yaml").write_text(yaml.safe_dump(PIPELINE | changes))


def qtrack(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, stage_figures):
    """A folder in which one campaign has run, figures and all, and what the run printed."""
    folder = tmp_path_factory.mktemp("finished")
    write_task(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(figures, "stage_figures", stage_figures)
        return folder, qtrack("run", "tiny.yaml", "-v")


@pytest.fixture
def recorded(finished, monkeypatch):
    monkeypatch.chdir(finished[0])
    return finished[0]


def test_a_run_ends_with_the_table_on_stdout(finished):
    _, done = finished
    assert done.exit_code == 0, done.output
    assert [line.split()[0] for line in done.stdout.splitlines()[3:]] == ["float", "ptq", "per_channel"]


def test_each_stage_has_its_figures(recorded):
    drawn = [path.name for path in sorted(recorded.glob("**/figures/*.png"))]
    assert drawn == 2 * ["classes.png", "histograms.png", "layers.png"]  # of ptq and of per_channel


def test_a_run_says_what_is_best_where_it_is_and_what_is_next(finished):
    _, done = finished
    assert "surely meets the target: " in done.stderr
    assert "largest error in " in done.stderr
    assert "test samples that no decision has seen" in done.stderr
    assert "recorded in sqlite:" in done.stderr
    assert "next: qtrack layers " in done.stderr
    assert "ledger: " in done.stderr


def test_compare_shows_the_campaign_again(recorded, finished):
    assert qtrack("compare").stdout == finished[1].stdout


def test_compare_prints_json_with_the_promised_fields(recorded):
    rows = json.loads(qtrack("compare", "--json").stdout)
    assert [row["stage"] for row in rows] == ["float", "ptq", "per_channel"]
    assert all(set(row) >= FIELDS for row in rows)


def test_compare_takes_runs(recorded):
    rows = json.loads(qtrack("compare", "ptq", "--json").stdout)
    assert [
        row["stage"] for row in json.loads(qtrack("compare", rows[0]["run_id"][:12], "--json").stdout)
    ] == ["ptq"]


def test_a_run_that_does_not_exist_is_one_line_and_wrong_input(recorded):
    done = qtrack("layers", "qat")
    assert done.exit_code == 2
    assert done.stderr.startswith("qtrack: no run 'qat'; there are float")
    assert len(done.stderr.splitlines()) == 1


def test_an_empty_store_says_how_to_begin():
    done = qtrack("compare")
    assert done.exit_code == 2
    assert "qtrack run PIPELINE.yaml" in done.stderr


def test_layers_are_shown_worst_first(recorded):
    rows = json.loads(qtrack("layers", "ptq", "--json").stdout)
    own = [row["own_sqnr_db"] for row in rows if row["own_sqnr_db"] is not None]
    assert own == sorted(own)
    assert all(set(row) >= ROW for row in rows)
    lines = qtrack("layers", "ptq", "--limit", "2").stdout.splitlines()
    assert rows[0]["layer"] in lines[-2]


def test_layers_of_two_runs_show_what_moved(recorded):
    pairs = json.loads(qtrack("layers", "ptq", "per_channel", "--json").stdout)
    stem = next(pair for pair in pairs if pair["layer"] == "stem")
    assert stem["own_sqnr_db_change"] == stem["own_sqnr_db"][1] - stem["own_sqnr_db"][0]
    assert "per_channel" in qtrack("layers", "ptq", "per_channel").stdout


BEGINNINGS = {"png": b"\x89PNG", "svg": b"<?xml", "HTML": b"<!DOCTYPE html>"}


@pytest.mark.parametrize("ending", BEGINNINGS)
@pytest.mark.parametrize("runs", [["ptq"], ["ptq", "per_channel"]])
def test_layers_can_be_drawn_beside_the_table(recorded, alone, ending, runs):
    path = alone / f"layers.{ending}"
    done = qtrack("layers", *runs, "--plot", path)
    assert done.exit_code == 0, done.output
    assert path.read_bytes().startswith(BEGINNINGS[ending])
    assert done.stderr.splitlines()[-1] == f"wrote {path}"
    assert done.stdout == qtrack("layers", *runs).stdout


def test_layers_can_be_drawn_beside_json(recorded, alone):
    done = qtrack("layers", "ptq", "--json", "--plot", alone / "layers.svg")
    assert json.loads(done.stdout) == json.loads(qtrack("layers", "ptq", "--json").stdout)
    assert (alone / "layers.svg").exists()


@pytest.mark.parametrize(
    ("run", "name", "said"),
    [
        ("ptq", "layers.gif", "--plot layers.gif: the name must end in one of .png, .svg, .html"),
        ("ptq", "nowhere/layers.png", "nowhere/layers.png: No such file or directory"),
        (
            "float",
            "layers.png",
            "layers of float: nothing to draw, no layer has a share of the error of its own",
        ),
    ],
)
def test_what_cannot_be_drawn_is_one_line_and_wrong_input(recorded, run, name, said):
    done = qtrack("layers", run, "--plot", name)
    assert done.exit_code == 2
    assert done.stderr == f"qtrack: {said}\n"
    assert not Path(name).exists()


@pytest.mark.parametrize("ending", BEGINNINGS)
def test_strategies_can_be_drawn_beside_the_table(recorded, alone, ending):
    path = alone / f"strategies.{ending}"
    done = qtrack("compare", "--plot", path)
    assert done.exit_code == 0, done.output
    assert path.read_bytes().startswith(BEGINNINGS[ending])
    assert done.stderr.splitlines()[-1] == f"wrote {path}"


def test_strategies_are_drawn_under_known_endings_only(recorded):
    done = qtrack("compare", "--plot", "strategies.gif")
    assert done.exit_code == 2
    assert done.stderr == "qtrack: --plot strategies.gif: the name must end in one of .png, .svg, .html\n"


def test_an_exported_recipe_is_the_recorded_one(recorded):
    text = qtrack("export", "per_channel", "--recipe-only").stdout
    assert recipe_from_yaml(text).digest == Ledger.open().strategies(["per_channel"])[0].recipe_digest


@pytest.mark.slow
@pytest.mark.parametrize("place", ["best.yaml", "deeper/best.yaml"])
def test_an_exported_pipeline_gives_the_same_model_again(alone, place):
    write_task(alone)
    (alone / "deeper").mkdir()
    first = run_pipeline("tiny.yaml")[-1]
    assert qtrack("export", "per_channel", "-o", place).exit_code == 0
    (again,) = run_pipeline(place)
    assert again.name == "per_channel"
    assert again.outcome.recipe.digest == first.outcome.recipe.digest
    assert again.outcome.digests["parameters"] == first.outcome.digests["parameters"]
    assert again.judged.drop == first.judged.drop


def test_an_exported_task_that_is_elsewhere_is_asked_for(recorded, tmp_path, monkeypatch):
    uri = Ledger.open().uri
    monkeypatch.chdir(tmp_path)
    done = qtrack("export", "ptq", "--tracking-uri", uri)
    assert "--task" in done.stderr
    named = qtrack("export", "ptq", "--tracking-uri", uri, "--task", "package.module:Mine")
    assert yaml.safe_load(named.stdout)["task"] == "package.module:Mine"


def test_a_file_that_cannot_be_written_is_wrong_input(recorded):
    done = qtrack("export", "ptq", "-o", "nowhere/best.yaml")
    assert done.exit_code == 2
    assert "nowhere/best.yaml" in done.stderr


def test_a_target_that_is_met_passes_the_gate(alone):
    write_task(alone, stages=["ptq"])
    done = qtrack("run", "tiny.yaml", "--require-target", "--json")
    assert done.exit_code == 0, done.stderr
    assert [row["stage"] for row in json.loads(done.stdout)] == ["ptq"]


def test_a_target_that_is_not_met_for_sure_does_not(alone):
    write_task(alone, stages=["ptq"])
    done = qtrack("run", "tiny.yaml", "--require-target", "--set", "target.max_drop=0")
    assert done.exit_code == 1
    assert "closest: ptq" in done.stderr


def test_a_stage_that_fails_leaves_the_others_on_record(alone):
    write_task(alone, loss="raise ZeroDivisionError('no loss today')", stages=["ptq", "qat"])
    done = qtrack("run", "tiny.yaml")
    assert done.exit_code in (2, 3)
    assert "no loss today" in done.stderr
    assert "Traceback" not in done.stderr
    shown = qtrack("compare").stdout.splitlines()
    assert "yes" in shown[-2]
    assert "FAILED" in shown[-1]


def test_a_store_that_stops_answering_in_the_end_has_the_record_all_the_same(alone, monkeypatch):
    def gone(*_, **__):
        raise StoreAway("the store does not answer")

    write_task(alone, stages=["float", "ptq"])
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "strategies", gone)
        done = qtrack("run", "tiny.yaml", "--json")
    assert done.exit_code == 0, done.stderr
    assert "the store does not answer; it has the whole record" in done.stderr
    told, kept = json.loads(done.stdout), json.loads(qtrack("compare", "--json").stdout)
    assert [row["stage"] for row in told] == ["float", "ptq"]
    assert [row["value"] for row in told] == [row["value"] for row in kept]


def test_doctor_checks_the_store(recorded):
    checks = json.loads(qtrack("doctor", "--json").stdout)
    states = {check["what"]: check["state"] for check in checks[-3:]}
    assert states == {"store": "ok", "store runs": "ok", "store artifacts": "ok"}


def test_doctor_says_what_each_backend_carries_out():
    backends = {c["what"]: c for c in json.loads(qtrack("doctor", "--json").stdout) if "features" in c}
    assert list(backends) == ["backend fx", "backend eager", "backend pt2e", "backend torchao"]
    assert backends["backend fx"]["features"]["mode"][0] == "static"
    rows = [line.split() for line in qtrack("doctor").stdout.splitlines()]
    assert ["training", "yes", "yes", "yes", "-"] in rows


def test_doctor_says_how_to_install_a_backend(monkeypatch):
    monkeypatch.setattr("qtrack.backends.capabilities.find_spec", lambda package: None)
    assert "not installed: pip install 'qtrack[pt2e]'" in qtrack("doctor").stdout


def test_doctor_leaves_no_store_behind(alone):
    assert qtrack("doctor").exit_code == 0
    assert list(alone.iterdir()) == []


def test_doctor_exits_with_1_where_the_store_is_out_of_reach():
    done = qtrack("doctor", "--tracking-uri", "sqlite:////dev/null/mlflow.db")
    assert done.exit_code == 1
    assert "broken" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_end_is_recorded_as_killed(how, alone):
    write_task(alone, loss="import time; time.sleep(60)", stages=["ptq", "qat"])
    with running("run", "tiny.yaml") as work:
        for line in work.stderr:
            if line.strip() == "qat":
                break
        time.sleep(2)
        work.send_signal(how)
        said = work.stderr.read()
        assert work.wait(30) == 130
    assert said.splitlines()[-1] == "qtrack: interrupted"
    assert Ledger.open().strategies()[-1].status == "KILLED"


@pytest.mark.slow
def test_the_ui_answers_and_ends(recorded):
    with running("ui") as work:
        links = dict(work.stdout.readline().strip().split(": ", 1) for _ in range(4))
        address = links["all experiments"]
        with urllib.request.urlopen(address, timeout=10) as page:
            assert b"MLflow" in page.read()
        work.send_signal(signal.SIGINT)
        assert work.wait(30) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(address, timeout=5)


@pytest.mark.slow
def test_the_example_is_shown_as_a_copy(alone):
    from qtrack.cli.example import FOLDER

    def written():
        return {path: path.stat().st_mtime_ns for path in FOLDER.rglob("*")}

    before = written()
    with running("ui", "--example", TMPDIR=str(alone)) as work:
        links = dict(work.stdout.readline().strip().split(": ", 1) for _ in range(5))
        with urllib.request.urlopen(links["all experiments"], timeout=10) as page:
            assert b"MLflow" in page.read()
        (copy,) = alone.glob("qtrack-example-*")
        work.send_signal(signal.SIGTERM)
        assert work.wait(30) == 0
    assert "#/compare-runs?" in links["its strategies side by side"]
    assert written() == before
    assert not copy.exists()


def test_without_a_checkout_there_is_no_example(monkeypatch, alone):
    monkeypatch.setattr("qtrack.cli.example.FOLDER", alone / "mlruns_example")
    done = qtrack("ui", "--example")
    assert done.exit_code == 2
    assert "comes with a checkout" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_the_example_is_no_other_store():
    done = qtrack("ui", "--example", "--tracking-uri", "sqlite:///other.db")
    assert done.exit_code == 2
    assert "leave out --tracking-uri" in done.stderr


def test_where_views_may_not_be_shared_links_alone_are_printed(recorded, monkeypatch):
    def refuse(*_):
        raise MlflowException("PERMISSION_DENIED: read only")

    ledger = Ledger.open()
    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    monkeypatch.setattr(type(ledger), "uri", "http://tracking.example:5000/")
    monkeypatch.setattr("qtrack.ledger.Ledger.open", lambda *_, **__: ledger)
    done = qtrack("ui")
    assert done.exit_code == 0
    assert "columns and charts are MLflow's own choice" in done.stderr
    assert "PERMISSION_DENIED" in done.stderr
    assert "searchFilter=" in done.stdout
    assert "viewStateShareKey" not in done.stdout


def test_a_taken_port_is_wrong_input(recorded):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = qtrack("ui", "--port", taken.getsockname()[1])
    assert done.exit_code == 2
    assert "is taken" in done.stderr


def test_the_links_of_a_server_are_printed_without_a_server_of_ones_own(recorded, monkeypatch):
    ledger = Ledger.open()
    monkeypatch.setattr(type(ledger), "uri", "http://me:hunter2@tracking.example:5000/")
    monkeypatch.setattr("qtrack.ledger.Ledger.open", lambda *_, **__: ledger)
    lines = qtrack("ui").stdout.splitlines()
    assert lines[0].startswith("all experiments: http://me:***@tracking.example:5000/")
    assert any("#/compare-runs?" in line for line in lines)
    assert not any("hunter2" in line for line in lines)
