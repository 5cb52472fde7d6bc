"""A sweep on a real Ray cluster of two nodes, with nodes and workers that are lost on the way."""

import logging
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from commands import command
from servers import free_port

from qtrack import Ledger
from qtrack.errors import InputError
from qtrack.executors import Job, finished, open_executor
from qtrack.ledger.names import CAMPAIGN, STAGE, Tag
from qtrack.ledger.rows import Query
from qtrack.ledger.store import sqlite_uri
from qtrack.sweep import read_sweep, run_sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Ray's own, of its threads and sockets
]
ray = pytest.importorskip("ray", reason="needs qtrack[ray]")
PIPELINES = Path(__file__).parent.parent / "pipelines"
HERE = str(Path(__file__).parent)


@pytest.fixture
def cluster(monkeypatch):
    """Two nodes of one core each, on this machine; the second is where work may be lost."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", HERE)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def swept(folder, executor_name, address=None, meanwhile=None):
    """What a sweep of twelve jobs on digits leaves in a store of its own."""
    folder.mkdir()
    ledger = Ledger.open(sqlite_uri(folder / "mlflow.db"))
    with open_executor(executor_name, address=address) as executor:
        if meanwhile:
            threading.Thread(target=meanwhile, args=(ledger,), daemon=True).start()
        found = run_sweep(read_sweep(PIPELINES / "sweep.yaml"), ledger, executor)
    return ledger, found


def runs(ledger):
    experiments = list(ledger._reader.experiments())
    read = ledger._reader.source.runs
    return (
        list(read(Query(experiments, {Tag.KIND: CAMPAIGN}))),
        list(read(Query(experiments, {Tag.KIND: STAGE}))),
    )


def digests(ledger, found):
    """Of each job and stage: its recipe, its parameters and its outputs."""
    job_of = {one.campaign: one.key for one in found}
    told = {}
    for run in runs(ledger)[1]:
        recorded = ledger.recorded(run.run_id)
        key = (job_of[run.tags[Tag.CAMPAIGN]], run.tags[Tag.STAGE])
        told[key] = (recorded.recipe.digest, recorded.result.parameters, recorded.result.behaviour)
    return told


def assert_recorded_once(ledger, found):
    campaigns, stages = runs(ledger)
    assert [one.error for one in found] == [""] * 12
    assert sorted(run.tags[Tag.JOB] for run in campaigns) == sorted(one.key for one in found)
    assert len(stages) == 24
    assert {run.status for run in (*campaigns, *stages)} == {"FINISHED"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    ledger, found = swept(tmp_path_factory.mktemp("reference") / "store", "in-process")
    assert_recorded_once(ledger, found)
    return digests(ledger, found)


def after_first(act):
    """Act once a job has been recorded, while others run."""

    def wait(ledger):
        while not runs(ledger)[0]:
            time.sleep(0.2)
        act()

    return wait


def test_a_cluster_gives_the_same_digests_and_records_each_run_once(cluster, tmp_path, reference):
    ledger, found = swept(tmp_path / "store", "ray", cluster.address)
    assert_recorded_once(ledger, found)
    assert digests(ledger, found) == reference
    assert [one.tries for one in found] == [1] * 12


def test_the_same_with_a_node_that_is_lost_in_the_middle(cluster, tmp_path, reference, caplog):
    caplog.set_level(logging.WARNING, "qtrack")
    lose = after_first(lambda: cluster.remove_node(cluster.second, allow_graceful=False))
    ledger, found = swept(tmp_path / "store", "ray", cluster.address, lose)
    assert_recorded_once(ledger, found)
    assert digests(ledger, found) == reference
    assert "it is tried again" in caplog.text
    assert max(one.tries for one in found) > 1


def test_the_same_with_a_worker_that_is_killed(cluster, tmp_path, reference):
    ledger, found = swept(tmp_path / "store", "ray", cluster.address, after_first(kill_a_worker))
    assert_recorded_once(ledger, found)
    assert digests(ledger, found) == reference
    assert max(one.tries for one in found) > 1


def kill_a_worker():
    """The one that is busy with a job, by the name that Ray gives its process."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                name = (process / "cmdline").read_bytes()
                ours = parent(parent(int(process.name))) == os.getpid()  # of a raylet of this cluster
            except OSError:
                continue
            if ours and name.startswith(b"ray::") and b"IDLE" not in name and b"Agent" not in name:
                os.kill(int(process.name), signal.SIGKILL)
                return
        time.sleep(0.05)


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_cluster_that_runs_on_this_machine_is_joined_by_its_address_alone(cluster):
    with open_executor("ray", workers=3):
        assert ray.cluster_resources()["CPU"] == 3
    with open_executor("ray", address=cluster.address):
        assert ray.cluster_resources()["CPU"] == 2
    with pytest.raises(InputError, match="has cores of its own"):
        open_executor("ray", address=cluster.address, workers=3)


@pytest.fixture
def guarded(tmp_path):
    """The address and the token of a cluster that asks for one."""
    token, port = secrets.token_hex(16), free_port()
    around = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    options = ["--head", "--port", str(port), "--num-cpus", "1", "--include-dashboard=false", "--block"]
    ray_ = [sys.executable, "-m", "ray.scripts.scripts", "start", *options]
    with (tmp_path / "ray.log").open("wb") as log:
        process = subprocess.Popen(ray_, env=around, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while "Ray runtime started" not in (tmp_path / "ray.log").read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    yield f"127.0.0.1:{port}", token
    process.terminate()
    process.wait(60)


def write_sweep(folder):
    task = f"{HERE}/tiny.py:Tiny"
    (folder / "one.yaml").write_text(f"{{name: one, task: '{task}', stages: [ptq], threads: 1}}")
    (folder / "sweep.yaml").write_text("{name: s, jobs: [{pipeline: one.yaml}]}")


def test_a_cluster_of_ones_own_leaves_no_token_in_the_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    write_sweep(tmp_path)
    new = ["--executor", "ray", "--workers", "1"]
    done = command("sweep", "sweep.yaml", *new, HOME=str(tmp_path), PYTHONPATH=HERE)
    assert done.exit_code == 0, done.stderr
    assert not (tmp_path / ".ray").exists()


def test_a_cluster_that_asks_for_a_token_says_so_in_one_line(guarded, tmp_path, monkeypatch):
    address, token = guarded
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    write_sweep(tmp_path)
    sweep = ["sweep", "sweep.yaml", "--executor", "ray", "--address", address]
    refused = command(*sweep)
    assert refused.exit_code == 2
    (line,) = refused.stderr.splitlines()
    assert f"Ray at {address} cannot be joined: it asks for a token; set RAY_AUTH_MODE=token" in line
    done = command(*sweep, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token, PYTHONPATH=HERE)
    assert done.exit_code == 0, done.stderr


def test_a_task_that_a_worker_cannot_import_fails_that_job_alone(cluster, tmp_path):
    shutil.copy(Path(HERE) / "tiny.py", tmp_path)
    (tmp_path / "driver_only.py").write_text(
        "import os\nif os.environ.get('DRIVER') != '1':\n    raise ImportError('not on this node')\n"
        "from tiny import Tiny\n\nclass There(Tiny):\n    pass\n"
    )
    (tmp_path / "one.yaml").write_text("{name: one, task: 'tiny.py:Tiny', stages: [ptq], threads: 1}")
    (tmp_path / "sweep.yaml").write_text(
        "{name: s, jobs: [{pipeline: one.yaml, task: 'driver_only.py:There'}, {pipeline: one.yaml}]}"
    )
    ledger = Ledger.open(sqlite_uri(tmp_path / "mlflow.db"))
    with open_executor("ray", address=cluster.address) as executor, pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRIVER", "1")
        found = run_sweep(read_sweep(tmp_path / "sweep.yaml"), ledger, executor)
    assert "cannot import driver_only.py" in found[0].error.replace(f"{tmp_path}/", "")
    assert found[1].error == ""


def test_only_what_the_cores_of_a_node_have_room_for_is_at_once(cluster):
    with open_executor("ray", address=cluster.address) as executor:
        assert (executor.slots, executor.at_once(1), executor.at_once(2)) == (4, 2, 1)
        cluster.add_node(num_cpus=3)
        assert (executor.at_once(1), executor.at_once(2)) == (5, 1)


def test_what_jobs_share_is_placed_once(cluster):
    with open_executor("ray", address=cluster.address) as executor, executor.placed(b"7" * 100_000) as placed:
        jobs = [Job(str(n), "test_sweep:length", {"content": placed}) for n in range(4)]
        assert len(ray.cloudpickle.dumps(jobs[0])) < 1000
        assert [one.result for one in finished(executor, jobs)] == [100_000] * 4


def test_a_job_that_takes_more_cores_than_a_node_has_waits_for_none(cluster):
    with open_executor("ray", address=cluster.address) as executor:
        (found,) = finished(executor, [Job("wide", "test_sweep:double", {"number": 1}, threads=64)])
    assert "64" in str(found.error)
