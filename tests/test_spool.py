"""What happens to a record when the store goes away, the process dies, or the disk is full."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from ledger_made import PTQ, Lines, outcome, result, rows, setting, spec
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException

from qtrack.cli import main
from qtrack.errors import StoreAway, StoreError
from qtrack.ledger import Ledger, heart, journal, models
from qtrack.ledger.run import FLUSH_POINTS

pytest_plugins = ("ledger_store",)

CALLS = ("create_run", "log_batch", "log_inputs", "log_artifacts", "set_terminated")


def away(*_, **__):
    raise ConnectionError("Connection refused")


def cut(monkeypatch, *calls, raising=away):
    """The store's answers to these calls are gone until the context ends."""
    for call in calls or CALLS:
        monkeypatch.setattr(MlflowClient, call, raising)


def runs_of(client):
    experiment = client.get_experiment_by_name("lines")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [(run.data.tags.get("qtrack.stage", "campaign"), run) for run in found]


def statuses(client):
    return [(name, run.info.status) for name, run in runs_of(client)]


def waiting(folder=Path(".qtrack/spool")):
    return [path for path in folder.glob("*") if path.is_dir()]


def record_stage(campaign, name="ptq", index=0, layers=None):
    with campaign.stage(spec(name), index) as stage:
        stage.recipe(PTQ, None)
        stage.report("train/loss", 0.5, 1)
        stage.result(result(name, index, outcome(layers=layers or rows(3))))


# the store goes away


def test_work_goes_on_and_the_user_is_told_once(ledger, client, monkeypatch, caplog):
    with ledger.campaign(setting()) as campaign, monkeypatch.context() as patched:
        cut(patched)
        for index, name in enumerate(("float", "ptq", "per_channel")):
            record_stage(campaign, name, index)
    said = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert sum("The work goes on" in line for line in said) == 1
    assert [name for name, _ in statuses(client)] == ["campaign", "float", "ptq", "per_channel"]
    assert {status for _, status in statuses(client)} == {"FINISHED"}
    assert waiting() == []


def test_what_waits_at_the_end_is_sent_by_sync_in_order_and_once(ledger, client, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        with ledger.campaign(setting()) as campaign:
            cut(patched)
            record_stage(campaign, "float", 0)
            record_stage(campaign, "ptq", 1)
        assert ledger.waiting == len(waiting()) == 3
        assert "3 runs are not all in the tracking store; later: qtrack sync" in caplog.text
    assert statuses(client) == [("campaign", "RUNNING")]
    found = Ledger.open().sync()
    assert [(one.name, one.trouble) for one in found][1:] == [("float", ""), ("ptq", "")]
    assert statuses(client) == [("campaign", "FINISHED"), ("float", "FINISHED"), ("ptq", "FINISHED")]
    for _, run in runs_of(client)[1:]:
        history = client.get_metric_history(run.info.run_id, "layers/own_sqnr_db")
        assert [(point.step, point.value) for point in history] == [(0, 40.0), (1, 39.0), (2, 38.0)]
        assert run.info.end_time >= run.info.start_time
    assert waiting() == []
    assert Ledger.open().sync() == []


def test_a_store_that_comes_back_gets_what_waits_before_the_next(ledger, client, monkeypatch):
    with ledger.campaign(setting()) as campaign:
        with monkeypatch.context() as patched:
            cut(patched)
            record_stage(campaign, "float", 0)
        ledger._spool._next_try = 0.0  # as if a while had passed
        record_stage(campaign, "ptq", 1)
        assert dict(statuses(client)) == {"campaign": "RUNNING", "float": "FINISHED", "ptq": "FINISHED"}


def test_a_store_that_is_away_before_the_record_begins_is_an_error_and_leaves_nothing(
    ledger, client, monkeypatch
):
    cut(monkeypatch, "create_run")
    with pytest.raises(StoreAway, match="connection refused"), ledger.campaign(setting()):
        pass
    assert statuses(client) == []
    assert waiting() == []


@pytest.mark.parametrize("said", ["UNIQUE constraint failed: datasets.name", "duplicate key value violates"])
def test_a_data_set_that_another_process_has_just_put_in_is_found(ledger, client, monkeypatch, said):
    refused, real = [], MlflowClient.log_inputs

    def late_once(self, *arguments, **named):
        if not refused:
            refused.append(1)
            raise MlflowException(f"BAD_REQUEST: (IntegrityError) {said}")
        return real(self, *arguments, **named)

    monkeypatch.setattr(MlflowClient, "log_inputs", late_once)
    with ledger.campaign(setting()) as campaign:
        record_stage(campaign)
    assert refused
    run = dict(runs_of(client))["ptq"]
    assert {one.tags[0].value for one in run.inputs.dataset_inputs} == {"calibration", "validation"}


def test_a_data_set_that_the_store_refuses_each_time_waits(ledger, client, monkeypatch, caplog):
    def refuse(*_, **__):
        raise MlflowException("BAD_REQUEST: UNIQUE constraint failed: datasets.name")

    monkeypatch.setattr(MlflowClient, "log_inputs", refuse)
    with ledger.campaign(setting()) as campaign:
        record_stage(campaign)
    assert "cannot record the data sets of the run 'ptq'" in caplog.text
    assert len(waiting()) == 1


@pytest.mark.slow
def test_a_slow_store_is_left_alone_for_a_while(ledger, client, monkeypatch, caplog):
    calls, real = [], MlflowClient.log_batch

    def slow(self, *arguments, **named):
        calls.append(1)
        time.sleep(0.2)
        return real(self, *arguments, **named)

    monkeypatch.setattr("qtrack.ledger.spool.SLOW_S", 0.1)
    monkeypatch.setattr(MlflowClient, "log_batch", slow)
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        for step in range(20 * FLUSH_POINTS):
            stage.report("train/loss", 0.5, step)
        during = len(calls)
    assert during <= 3
    assert "is slow" in caplog.text
    assert (
        len(client.get_metric_history(runs_of(client)[1][1].info.run_id, "train/loss")) == 20 * FLUSH_POINTS
    )


def test_a_store_that_is_away_is_asked_once_whether_it_knows_a_stage(ledger, monkeypatch, caplog):
    asked = []

    def silent(*_, **__):
        asked.append(os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
        away()

    with ledger.campaign(setting()), monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "get_experiment_by_name", silent)
        assert [ledger.known(setting().plan.task, question="q") for _ in range(3)] == [None] * 3
    assert asked == ["1"]  # MLflow's own patience would be half a minute for each question
    assert caplog.text.count("The work goes on") == 1


def test_what_the_store_refuses_is_an_error_at_once_and_kept(ledger, client, monkeypatch):
    def refuse(*_, **__):
        raise MlflowException("no such run", 3001)  # RESOURCE_DOES_NOT_EXIST

    def refused():
        with ledger.campaign(setting()) as campaign, monkeypatch.context() as patched:
            cut(patched, "log_batch", raising=refuse)
            record_stage(campaign)

    with pytest.raises(StoreError, match="no such run"):
        refused()
    Ledger.open().sync()
    assert dict(statuses(client)) == {"campaign": "FAILED", "ptq": "FAILED"}


def test_what_is_refused_for_ever_holds_up_no_other(ledger, client, monkeypatch):
    with monkeypatch.context() as patched, ledger.campaign(setting()) as campaign:
        cut(patched)
        record_stage(campaign, "float", 0)
        record_stage(campaign, "ptq", 1)
    (first,) = [path for path in waiting() if json.loads((path / "run.json").read_text())["name"] == "float"]
    header = json.loads((first / "run.json").read_text())
    (first / "run.json").write_text(json.dumps(header | {"experiment": "4711"}))
    with monkeypatch.context() as patched:
        found = {one.name: one.trouble for one in Ledger.open().sync()}
        assert "4711" in found["float"]
        assert found["ptq"] == ""
        done = CliRunner().invoke(main, ["sync"])
    assert done.exit_code == 3
    assert "waits: " in done.stdout


# answers are lost


def test_a_run_whose_creation_was_not_confirmed_is_not_created_twice(ledger, client, monkeypatch):
    real = MlflowClient.create_run

    def unheard(self, *arguments, **named):
        real(self, *arguments, **named)
        raise ConnectionResetError("Connection reset by peer")

    with ledger.campaign(setting()) as campaign:
        with monkeypatch.context() as patched:
            cut(patched, "create_run", raising=unheard)
            record_stage(campaign)
        ledger._spool.send(now=True)
    assert statuses(client) == [("campaign", "FINISHED"), ("ptq", "FINISHED")]


def test_whatever_was_sent_and_not_confirmed_is_there_once(ledger, client, monkeypatch):
    def heard(call):
        real = getattr(MlflowClient, call)

        def unheard(self, *arguments, **named):
            real(self, *arguments, **named)
            raise ConnectionResetError("Connection reset by peer")

        return unheard

    with ledger.campaign(setting()) as campaign:
        for call in CALLS[1:]:
            with monkeypatch.context() as patched:
                patched.setattr(MlflowClient, call, heard(call))
                record_stage(campaign, call, 0)
            ledger._spool.send(now=True)
    found = runs_of(client)
    assert [run.info.status for _, run in found] == ["FINISHED"] * 5
    for _, run in found[1:]:
        assert len(client.get_metric_history(run.info.run_id, "layers/own_sqnr_db")) == 3
        assert len(client.get_metric_history(run.info.run_id, "accuracy")) == 1
        assert len(run.inputs.dataset_inputs) == 2


# the process dies

DYING = """\
import os, sys
sys.path.insert(0, {tests!r})
from ledger_made import *
from qtrack.ledger import Ledger
from qtrack.ledger.journal import Journal

def die(*_, **__):
    os.kill(os.getpid(), 9)

with Ledger.open().campaign(setting()) as campaign:
    with campaign.stage(spec("float"), 0) as stage:
        stage.recipe(FLOAT, None)
        stage.result(result("float", 0))
    with campaign.stage(spec("ptq"), 1) as stage:
        stage.recipe(PTQ, None)
        {moment}
        stage.result(result("ptq", 1))
"""


@pytest.mark.parametrize(
    ("moment", "status"),
    [
        ("die()", "KILLED"),
        ("Journal.append = die", "KILLED"),
        pytest.param("Journal.sent = die", "KILLED", marks=pytest.mark.slow),
        # MLflow has it all, which is known only here
        pytest.param("Journal.remove = die", "FINISHED", marks=pytest.mark.slow),
        pytest.param("import shutil; shutil.rmtree = die", "KILLED", marks=pytest.mark.slow),
    ],
)
def test_a_killed_process_loses_nothing_that_it_had_recorded(ledger, client, moment, status):
    done = subprocess.run(
        [sys.executable, "-c", DYING.format(tests=str(Path(__file__).parent), moment=moment)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    Ledger.open().sync()
    assert statuses(client) == [("campaign", "KILLED"), ("float", "FINISHED"), ("ptq", status)]
    for _, run in runs_of(client)[1:]:
        assert len(client.get_metric_history(run.info.run_id, "accuracy")) <= 1
    assert runs_of(client)[2][1].data.params["mode"] == "static"
    assert waiting() == []


def test_a_record_that_never_began_is_removed_once_it_is_old(ledger):
    young, old = Path(".qtrack/spool/young"), Path(".qtrack/spool/old")
    for folder in (young, old):
        folder.mkdir(parents=True)
        (folder / "lock").touch()
    os.utime(old, (0, time.time() - 3600))
    assert ledger.sync() == []
    assert [path.name for path in waiting()] == ["young"]


def test_the_record_of_a_process_that_lives_is_left_alone(ledger, client):
    with ledger.campaign(setting()) as campaign, campaign.stage(spec("ptq"), 0) as stage:
        stage.begin()
        assert Ledger.open().sync() == []
        assert len(waiting()) == 2
    assert dict(statuses(client)) == {"campaign": "FINISHED", "ptq": "FINISHED"}


def test_the_record_for_another_store_waits_for_that_one(ledger, client, monkeypatch, tmp_path):
    with monkeypatch.context() as patched, ledger.campaign(setting()):
        cut(patched)
    (path,) = waiting()
    header = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(header | {"store": "http://me:***@elsewhere:5000"}))
    (found,) = Ledger.open().sync()
    assert found.trouble == "it belongs to http://me:***@elsewhere:5000"
    assert waiting() == [path]


def test_nothing_that_waits_is_said_so(ledger):
    done = CliRunner().invoke(main, ["sync"])
    assert (done.exit_code, done.stderr) == (0, "nothing waits\n")
    assert CliRunner().invoke(main, ["sync", "--json"]).stdout == "[]\n"


# the disk is full


def test_a_full_disk_is_one_line_and_what_was_finished_stays(ledger, client, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def fill(patched):
        with ledger.campaign(setting()) as campaign:
            record_stage(campaign, "float", 0)
            with campaign.stage(spec("ptq"), 1) as stage:
                stage.begin()
                patched.setattr(os, "fsync", full)
                stage.recipe(PTQ, None)

    with monkeypatch.context() as patched, pytest.raises(StoreError) as raised:
        fill(patched)
    assert "no space left on the device; what was finished is kept" in str(raised.value)
    assert "\n" not in str(raised.value)
    Ledger.open().sync()
    assert dict(statuses(client)) == {"campaign": "KILLED", "float": "FINISHED", "ptq": "KILLED"}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a megabyte, that anything else in it fills."""
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)])
    if done.returncode:
        pytest.skip("mounting is not permitted")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_files_that_the_disk_does_not_take_are_one_line(small_disk):
    made = journal.Journal.create(small_disk, journal.Header("a", "s", "0", "n", {}, 0))
    with (
        pytest.raises(StoreError, match="no space left on the device; what was finished is kept"),
        made.files() as folder,
    ):
        (folder / "big").write_bytes(bytes(2 << 20))
    made.leave()


def test_a_model_that_the_disk_does_not_take_is_an_error_and_not_left_out(small_disk):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((1 << 20) - 4096))
    with pytest.raises(OSError, match="No space left"):
        models.save(Lines(), outcome(), small_disk / "model")
    assert list(small_disk.iterdir()) == [ballast]


def test_a_description_of_the_model_that_the_disk_does_not_take_is_an_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qtrack.ledger.mlmodel.Model.save", full)
    with pytest.raises(OSError, match="No space left"):
        models.save(Lines(), outcome(), tmp_path / "model")


def test_a_figure_that_the_disk_does_not_take_is_an_error(ledger, client, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    drawing = Ledger.open(figures=lambda _: [("f", Figure())])
    with pytest.raises(StoreError, match="no space left"), drawing.campaign(setting()) as campaign:
        record_stage(campaign)
    assert dict(statuses(client))["ptq"] == "FAILED"


def test_an_entry_is_whole_or_not_there(tmp_path, monkeypatch):
    header = journal.Header("a", "s", "0", "n", {}, 0)
    made = journal.Journal.create(tmp_path, header)
    made.append("values", points=[])
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
        with pytest.raises(StoreError):
            made.append("values", points=[1])
    made.append("values", points=[2])
    assert [entry["points"] for _, entry in made.entries()] == [[], [2]]
    assert not list(made.folder.glob("*.new"))


# dead runs


def running(client, **tags):
    experiment = client.get_experiment_by_name("lines")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("lines")
    return client.create_run(
        experiment_id, tags={"qtrack.kind": "stage", **tags}, run_name="dead"
    ).info.run_id


def beat(seconds_ago):
    return (datetime.now(UTC) - timedelta(seconds=seconds_ago)).isoformat(timespec="seconds")


def process(**changes):
    return json.dumps(heart._identity(os.getpid()) | changes)


@pytest.mark.parametrize(
    ("seconds_ago", "changes", "ended"),
    [
        (3600, {}, False),  # this very process
        (3600, {"started": "long ago"}, True),  # its number was used again
        (3600, {"pid": 2**22 + 5}, True),
        (5, {"pid": 2**22 + 5}, False),  # young: a process in a container is not seen from here
        (3600, {"host": "elsewhere"}, True),
        (5, {"host": "elsewhere"}, False),
    ],
)
def test_only_runs_with_an_old_heartbeat_and_without_a_process_are_dead(
    ledger, client, seconds_ago, changes, ended
):
    tags = {"qtrack.heartbeat": beat(seconds_ago), "qtrack.process": process(**changes)}
    run = running(client, **tags)
    (found,) = ledger.repair()
    assert found.ended is ended
    assert client.get_run(run).info.status == ("KILLED" if ended else "RUNNING")


def test_a_dead_run_ended_when_it_was_last_seen(ledger, client):
    run = running(client, **{"qtrack.heartbeat": beat(3600)})
    ledger.repair()
    assert time.time() - client.get_run(run).info.end_time / 1000 == pytest.approx(3600, abs=5)


def test_runs_of_others_and_broken_tags_are_no_trouble(ledger, client):
    experiment = client.create_experiment("lines")
    foreign = client.create_run(experiment).info.run_id
    run = running(client, **{"qtrack.heartbeat": "soon", "qtrack.process": "[]"})
    assert [one.ended for one in ledger.repair()] == [True]
    assert client.get_run(run).info.status == "KILLED"
    assert client.get_run(foreign).info.status == "RUNNING"


def test_repair_is_a_command_with_a_table(ledger, client):
    run = running(client, **{"qtrack.heartbeat": beat(20), "qtrack.process": process(host="elsewhere")})
    assert "alive" in CliRunner().invoke(main, ["repair"]).stdout
    done = CliRunner().invoke(main, ["repair", "--older-than", "10", "--json"])
    assert [(one["run_id"], one["ended"]) for one in json.loads(done.stdout)] == [(run, True)]
    assert CliRunner().invoke(main, ["repair"]).stderr == "no run is running\n"


def test_a_campaign_begins_by_ending_the_dead_of_its_experiment(ledger, client, caplog):
    dead = running(client, **{"qtrack.heartbeat": beat(3600)})
    with caplog.at_level(logging.INFO, "qtrack"), ledger.campaign(setting()):
        pass
    assert client.get_run(dead).info.status == "KILLED"
    assert "was dead: ended as KILLED" in caplog.text


def test_points_have_the_time_at_which_they_were_made(ledger, client, monkeypatch):
    with ledger.campaign(setting()) as campaign, monkeypatch.context() as patched:
        cut(patched)
        record_stage(campaign)
        made = int(time.time() * 1000)
        time.sleep(0.05)
    (point,) = client.get_metric_history(runs_of(client)[1][1].info.run_id, "accuracy")
    assert isinstance(point, Metric)
    assert point.timestamp <= made


def test_too_little_room_is_said_before_the_work_begins(ledger, client, monkeypatch):
    import shutil
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 10**6))
    with pytest.raises(StoreError, match=r"1\.0 MB are free and the record takes up to 6\.0 MB"):
        ledger.campaign(setting())
    assert client.get_experiment_by_name("lines") is None


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs to mount a file system")
def test_a_read_only_folder_is_one_line_before_the_work_begins(ledger, tmp_path):
    folder = tmp_path / "sealed"
    folder.mkdir()
    (folder / "mlflow.db").write_bytes(Path("mlflow.db").read_bytes())
    mounted = subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        with pytest.raises(StoreError, match=r"sealed.*read-only file system"):
            Ledger.open(f"sqlite:///{folder}/mlflow.db").campaign(setting())
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


SECRETS = {
    "MLFLOW_TRACKING_PASSWORD": "hunter2hunter2",
    "MLFLOW_TRACKING_TOKEN": "tok-0123456789",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG",
}


def test_no_secret_is_written_to_the_store_or_the_spool(ledger, client, monkeypatch, tmp_path):
    """In the command line, the settings, a layer's name, an exception, a tag, a log line or a store's URI."""
    from qtrack.environment import environment

    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(
        sys, "argv", ["qtrack", "run", "--tracking-uri", "http://me:hushhush@host:5000", "--api-key=AbCd1234"]
    )
    made = setting(name="lines", source="uri: postgresql://me:hushhush@db/x\ntoken: AbCd1234\n")
    made.environment.update(environment())
    assert "hushhush" in made.environment["command"]

    said = "cannot reach https://me:hushhush@host with token=AbCd1234"

    def fail():
        with ledger.campaign(made) as campaign, monkeypatch.context() as patched:
            cut(patched)  # so that all of it is in the spool as well
            record_stage(campaign, layers=rows(1))
            with campaign.stage(spec("per_channel"), 1) as stage:
                stage.begin()
                logging.getLogger("qtrack").warning("password=AbCd1234 at s3://me:hushhush@bucket")
                written = b"".join(path.read_bytes() for path in Path(".qtrack").rglob("*") if path.is_file())
                assert_no_secret(written)
                raise RuntimeError(said)

    with pytest.raises(RuntimeError):
        fail()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "environment.json" for path in files)
    assert_no_secret(b"".join(path.read_bytes() for path in files))


def assert_no_secret(written):
    found = [value for value in (*SECRETS.values(), "hushhush", "AbCd1234") if value.encode() in written]
    assert found == []
