"""What ``qtrack doctor`` says of a store, and that it leaves none of it behind."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from mlflow.version import VERSION
from servers import answering

from qtrack.cli import main
from qtrack.ledger.checkup import checkup

pytest_plugins = ("ledger_store",)


def parts(uri=None):
    return {part.what: part for part in checkup(uri)}


def test_a_database_file_holds_and_is_left_as_it_was(client, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    found = parts()
    assert [part.holds for part in found.values()] == [True] * 3
    assert list(found) == ["store", "store runs", "store artifacts"]
    assert found["store"].detail.startswith(f"sqlite:///{tmp_path}/mlflow.db, answers in ")
    assert sorted(tmp_path.rglob("*")) == before
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]
    everything = [experiment.experiment_id for experiment in client.search_experiments(ViewType.ALL)]
    assert client.search_runs(everything) == []


def test_files_that_are_there_already_stay(client, tmp_path):
    (tmp_path / "mlartifacts" / "digits").mkdir(parents=True)
    assert all(part.holds for part in checkup())
    assert [path.name for path in (tmp_path / "mlartifacts").iterdir()] == ["digits"]


@pytest.mark.parametrize("uri", [None, "sqlite:///deeper/down/runs.db"])
def test_no_database_file_is_made(uri, tmp_path):
    (part,) = checkup(uri)
    assert part.holds
    assert part.detail.endswith(".db, which the first run creates")
    assert list(tmp_path.iterdir()) == []


def test_a_place_where_no_database_can_be_made_is_broken():
    (part,) = checkup("sqlite:////dev/null/mlflow.db")
    assert not part.holds
    assert part.detail == "sqlite:////dev/null/mlflow.db does not exist, and /dev/null cannot be written"


def test_a_store_out_of_reach_is_one_part():
    (part,) = checkup("http://nowhere.invalid:5000")
    assert (part.what, part.holds) == ("store", False)
    assert part.detail.endswith("no such host")


def test_artifacts_that_cannot_be_written_do_not_hide_that_runs_can(client, tmp_path):
    (tmp_path / "mlartifacts").write_text("no folder")
    found = parts()
    assert found["store runs"].holds
    assert not found["store artifacts"].holds
    assert "cannot write an artifact: " in found["store artifacts"].detail
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]


def test_an_artifact_that_comes_back_changed_is_seen(client, monkeypatch):
    download = MlflowClient.download_artifacts

    def cut(self, run_id, path, folder):
        found = download(self, run_id, path, folder)
        with open(found, "r+b") as file:
            file.truncate(99_999)
        return found

    monkeypatch.setattr(MlflowClient, "download_artifacts", cut)
    found = parts()["store artifacts"]
    assert not found.holds
    assert found.detail.startswith("an artifact comes back changed: qtrack-doctor.bin")


def test_an_artifact_may_not_be_removable(client, monkeypatch):
    def refused(self, artifact_path=None):
        raise MlflowException("error code 403")

    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refused)
    found = parts()["store artifacts"]
    assert found.holds
    assert found.detail.endswith("cannot remove it: the server does not permit this (403)")


def test_a_run_that_stays_behind_is_named(client, monkeypatch):
    def refused(self, experiment_id):
        raise MlflowException("error code 403")

    monkeypatch.setattr(MlflowClient, "delete_experiment", refused)
    found = parts()
    assert not found["store runs"].holds
    (left,) = (one.name for one in client.search_experiments() if one.name != "Default")
    assert f"cannot delete the experiment {left}: the server does not permit this (403)" in (
        found["store runs"].detail
    )
    assert found["store artifacts"].holds


def test_an_interrupted_check_leaves_nothing_either(client, monkeypatch):
    def interrupted(self, run_id, path, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(MlflowClient, "download_artifacts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkup()
    assert [experiment.name for experiment in client.search_experiments()] == ["Default"]


def served(version="", ahead_s=None):
    """What a server says that lists no experiments, and refuses to make one."""
    headers = {} if ahead_s is None else {"Date": formatdate(time.time() + ahead_s, usegmt=True)}

    def answer(path):
        if path == "/version":
            return (200, headers, version) if version else (404, headers, "")
        return (200, headers, "{}") if path.endswith("/experiments/search") else (403, headers, "no")

    return answering(answer)


def test_a_server_that_refuses_to_be_written_is_still_asked_for_the_rest():
    with served(VERSION, 0) as address:
        found = parts(address)
    assert [part.holds for part in found.values()] == [True, True, True, False, False]
    assert found["store version"].detail == f"MLflow {VERSION} on the server, {VERSION} here"
    assert found["store runs"].detail.endswith("the server does not permit this (403)")
    assert found["store artifacts"].detail == "not tried, for want of a run to put one into"


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("2.22.1", f"MLflow 2.22.1 on the server, {VERSION} here, which qtrack is not tested with"),
        ("", f"the server does not tell; MLflow {VERSION} here"),
        ("<html>a page</html>", f"the server does not tell; MLflow {VERSION} here"),
    ],
)
def test_the_version_of_a_server_stands_beside_the_client_s(version, said):
    with served(version, 0) as address:
        assert parts(address)["store version"] == ("store version", True, said)


@pytest.mark.parametrize(("ahead_s", "holds"), [(-3600, False), (-30, True), (30, True), (3600, False)])
def test_a_clock_that_is_off_is_told_in_seconds(ahead_s, holds):
    with served(VERSION, ahead_s) as address:
        found = parts(address)["store clock"]
    assert found.holds is holds
    seconds = int(found.detail.split()[3])
    assert abs(seconds - abs(ahead_s)) <= 2
    assert ("ahead of" if ahead_s > 0 else "behind") in found.detail
    assert ("set both by a time server" in found.detail) is not holds


def test_a_server_that_tells_no_time_is_no_failure():
    with served(VERSION) as address:
        assert parts(address)["store clock"] == ("store clock", True, "the server does not tell its time")


def test_the_command_exits_with_1_and_says_all_in_json():
    with served(VERSION, 3600) as address:
        done = CliRunner().invoke(main, ["doctor", "--json", "--tracking-uri", address])
    assert done.exit_code == 1
    assert done.stderr == ""
    states = {c["what"]: c["state"] for c in json.loads(done.stdout) if c["what"].startswith("store")}
    assert states == {
        "store": "ok",
        "store version": "ok",
        "store clock": "broken",
        "store runs": "broken",
        "store artifacts": "broken",
    }
