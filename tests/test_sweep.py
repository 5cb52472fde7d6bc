"""Sweeps: jobs, executors, what is recorded of them, and what is left where a worker is lost."""

import json
import os
import pickle
import signal
from collections import Counter
from concurrent.futures import Future
from pathlib import Path

import pytest
from click.testing import CliRunner

from qtrack import Ledger, executors
from qtrack.cli import main
from qtrack.engine import training
from qtrack.errors import InputError, PipelineError, StoreAway
from qtrack.executors import Job, WorkerLost, finished, open_executor, perform
from qtrack.executors.in_process import InProcess
from qtrack.ledger.names import Tag
from qtrack.ledger.rows import Query
from qtrack.ledger.store import Store, sqlite_uri
from qtrack.sweep import read_sweep, run_sweep

PIPELINE = """
name: {name}
task: {task}
target: {{max_drop: 0.5}}
stages: [{stages}]
threads: 1
"""
TASK = Path(__file__).with_name("tiny.py")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.yaml").write_text(PIPELINE.format(name="one", task=f"{TASK}:Tiny", stages="ptq"))
    return tmp_path


def sweep_file(folder, text):
    path = folder / "sweep.yaml"
    path.write_text(text)
    return path


def two_jobs(folder):
    return sweep_file(folder, "{name: s, grid: {pipelines: [one.yaml], seeds: [0, 1]}}")


def ledger(folder):
    return Ledger.open(sqlite_uri(folder / "mlflow.db"))


def exit_now(number):
    os.kill(os.getpid(), number)


def die_once(marker):
    """Killed the first time."""
    if not Path(marker).exists():
        Path(marker).touch()
        exit_now(signal.SIGKILL)
    return "done"


def double(number):
    return 2 * number


def length(content):
    return len(content.read())


def jobs(count):
    return (Job(str(number), "test_sweep:double", {"number": number}) for number in range(count))


def test_a_grid_is_every_combination_and_a_job_that_is_there_twice_is_one(folder):
    text = "{name: s, grid: {pipelines: [one.yaml], seeds: [0, 1], engines: [x86, fbgemm]},"
    found = read_sweep(sweep_file(folder, text + " jobs: [{pipeline: one.yaml, seed: 0, engine: x86}]}"))
    told = [(job.plan.pipeline.recipe.seed, job.plan.pipeline.recipe.engine) for job in found.jobs]
    assert told == [(0, "x86"), (0, "fbgemm"), (1, "x86"), (1, "fbgemm")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{name: s}", "name at least one job"),
        ("{name: s, grids: {}}", "grids"),
        ("[]", "expected a mapping"),
        ("{name: s, grid: {pipelines: [none.yaml]}}", "none.yaml"),
        ("{name: s, jobs: [{pipeline: one.yaml, engine: z80}]}", "z80"),
        ("{name: s, jobs: [{pipeline: one.yaml, task: 'gone.py:X'}]}", "gone.py"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_before_anything_runs(folder, text, said):
    with pytest.raises(PipelineError, match=said):
        read_sweep(sweep_file(folder, text))


def test_the_same_jobs_have_the_same_id_and_those_of_an_edited_pipeline_another(folder):
    first = read_sweep(two_jobs(folder)).id
    assert read_sweep(two_jobs(folder)).id == first
    (folder / "one.yaml").write_text((folder / "one.yaml").read_text() + "until: target\n")
    assert read_sweep(two_jobs(folder)).id != first


def test_every_job_is_recorded_once_and_the_table_shows_all(folder):
    result = CliRunner().invoke(main, ["sweep", str(two_jobs(folder)), "--json"])
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout)
    assert [row["stage"] for row in rows] == ["ptq", "ptq"]
    assert len({row["campaign"] for row in rows}) == 2
    assert len(ledger(folder).finished("tiny")) == 2
    assert "2 of 2 jobs are finished" in result.stderr
    store, sweep = ledger(folder), read_sweep(folder / "sweep.yaml")
    runs = list(store._reader.source.runs(Query(list(store._reader.experiments()))))
    assert Counter(run.tags[Tag.KIND] for run in runs) == {"campaign": 2, "stage": 2}
    assert {run.tags[Tag.SWEEP] for run in runs} == {sweep.id}
    assert Counter(run.tags[Tag.JOB] for run in runs) == dict.fromkeys((job.key for job in sweep.jobs), 2)


def test_resume_leaves_out_what_is_finished(folder):
    read = read_sweep(two_jobs(folder))
    with open_executor("in-process") as executor:
        run_sweep(read, ledger(folder), executor)
        again = run_sweep(read, ledger(folder), executor, resume=True)
    assert [one.tries for one in again] == [0, 0]
    assert len(ledger(folder).finished("tiny")) == 2


def test_a_job_that_fails_is_recorded_as_failed_and_stops_no_other(folder):
    (folder / "bad.py").write_text(
        f"import sys\nsys.path.insert(0, {str(TASK.parent)!r})\nfrom tiny import Tiny\n"
        "class Bad(Tiny):\n    def validation(self):\n        raise OSError('disk gone')\n"
    )
    text = "{name: s, jobs: [{pipeline: one.yaml, task: 'bad.py:Bad'}, {pipeline: one.yaml}]}"
    result = CliRunner().invoke(main, ["sweep", str(sweep_file(folder, text)), "--json"])
    assert result.exit_code == 3
    assert "disk gone" in result.stderr
    assert "--resume" in result.stderr
    assert [row["stage"] for row in json.loads(result.stdout)] == ["ptq"]


def test_an_unknown_executor_is_one_line(folder):
    result = CliRunner().invoke(main, ["sweep", str(two_jobs(folder)), "--executor", "slurm"])
    assert result.exit_code == 2
    assert result.stderr.strip().splitlines()[-1].startswith("qtrack: executor 'slurm' is not one of")
    with pytest.raises(InputError, match="--address goes with"):
        open_executor("processes", address="x:1")
    with pytest.raises(InputError, match="--workers goes with the executors processes and ray"):
        open_executor("in-process", workers=2)


def test_a_lost_job_is_tried_three_times_and_then_reported():
    class Losing(InProcess):
        def submit(self, job):
            future = Future()
            future.set_exception(WorkerLost("gone"))
            return future

    (found,) = finished(Losing(), jobs(1))
    assert (found.tries, str(found.error)) == (3, "gone")


def test_jobs_are_asked_for_as_there_is_room():
    taken = []

    def source():
        for job in jobs(5):
            taken.append(job.name)
            yield job

    results = finished(InProcess(), source())
    assert next(results).result == 0
    assert taken == ["0"]
    assert [one.result for one in results] == [2, 4, 6, 8]


def test_a_worker_that_cannot_import_the_function_fails_that_job_alone():
    found = list(finished(InProcess(), [Job("a", "no_such_module:f"), *jobs(2)]))
    assert isinstance(found[0].error, ModuleNotFoundError)
    assert [one.result for one in found[1:]] == [0, 2]


@pytest.mark.slow
def test_processes_are_used_again_and_one_that_is_killed_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    dying = Job("dying", "test_sweep:die_once", {"marker": str(tmp_path / "marker")})
    with open_executor("processes", workers=2) as executor:
        found = {one.job.name: one for one in finished(executor, [dying, *jobs(4)])}
    assert (found["dying"].result, found["dying"].tries) == ("done", 2)
    assert [found[str(number)].result for number in range(4)] == [0, 2, 4, 6]


@pytest.mark.parametrize("name", ["in-process", "processes"])
def test_what_jobs_share_is_placed_once(name):
    content = b"7" * 100_000
    with open_executor(name, workers=1) as executor, executor.placed(content) as placed:
        job = Job("length", "test_sweep:length", {"content": placed})
        assert perform(job) == 100_000
        assert len(pickle.dumps(job)) < 1000 or name == "in-process"
    if name == "processes":
        with pytest.raises(FileNotFoundError):
            placed.read()


def test_where_no_file_can_be_written_each_job_is_sent_a_copy(monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    with open_executor("processes", workers=1) as executor, executor.placed(b"777") as placed:
        assert pickle.loads(pickle.dumps(placed)).read() == b"777"
    assert "each job is sent a copy" in caplog.text


@pytest.mark.slow
def test_a_store_that_goes_away_is_said_and_nothing_is_lost(folder, monkeypatch):
    path, away = two_jobs(folder), []

    def calling(self, doing, real=Store.calling):
        if away:
            raise StoreAway(f"cannot {doing}: connection refused")
        return real(self, doing)

    def perform_and_part(job, real=executors.in_process.perform):
        handed = real(job)
        away.append(job)
        return handed

    monkeypatch.setattr(Store, "calling", calling)
    monkeypatch.setattr(executors.in_process, "perform", perform_and_part)
    done = CliRunner().invoke(main, ["sweep", str(path)])
    assert done.exit_code == 0, done.output
    assert "what the store has not taken waits here; it is sent by: qtrack sync" in done.stderr
    away.clear()
    assert len(ledger(folder).sync()) == 4
    assert len(ledger(folder).finished("tiny")) == 2


@pytest.mark.slow
def test_a_task_is_loaded_once_for_all_jobs_until_its_file_is_edited(folder):
    task = "import sys\nfrom pathlib import Path\nsys.path.insert(0, {!r})\nfrom tiny import Tiny\n"
    task += "class Mine(Tiny):\n    def __init__(self):\n"
    task += "        with (Path(__file__).parent / 'loads').open('a') as file:\n            file.write('.')\n"
    (folder / "mine.py").write_text(task.format(str(TASK.parent)))
    path = sweep_file(
        folder, "{name: s, grid: {pipelines: [one.yaml], tasks: ['mine.py:Mine'], seeds: [0, 1, 2]}}"
    )
    for loads, edit in ((2, ""), (4, "\n# edited\n")):  # by the driver, and by the worker
        with (folder / "mine.py").open("a") as file:
            file.write(edit)
        assert all(not one.error for one in run_sweep(read_sweep(path), ledger(folder), InProcess()))
        assert len((folder / "loads").read_text()) == loads


def test_a_job_that_is_tried_again_goes_on_after_its_last_epoch(folder, monkeypatch):
    stages = "{qat: {epochs: 2}}"
    (folder / "one.yaml").write_text(PIPELINE.format(name="one", task=f"{TASK}:Tiny", stages=stages))
    path, epochs = sweep_file(folder, "{name: s, jobs: [{pipeline: one.yaml}]}"), []

    def begin(*given, real=training._begin_epoch):
        epochs.append(given[-1])
        if len(epochs) == 2:
            raise WorkerLost("its node is gone")
        real(*given)

    monkeypatch.setattr(training, "_begin_epoch", begin)
    (failed,) = run_sweep(read_sweep(path), ledger(folder), InProcess())
    assert failed.error == "its node is gone"
    (done,) = run_sweep(read_sweep(path), ledger(folder), InProcess(), resume=True)
    assert (done.error, epochs) == ("", [0, 1, 1])
    assert list(ledger(folder).scratch.rglob("*.pt")) == []


def test_there_are_as_many_processes_as_their_threads_fit_in(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for asked, slots in (
        ({}, 8),
        ({"threads": 3}, 2),
        ({"threads": 16}, 1),
        ({"threads": 3, "workers": 5}, 5),
    ):
        with open_executor("processes", **asked) as executor:
            assert executor.slots == slots


def test_a_cluster_that_does_not_answer_is_one_line():
    pytest.importorskip("ray", reason="needs qtrack[ray]")
    with pytest.raises(InputError, match=r"Ray at 127\.0\.0\.1:1 cannot be joined: .*refused"):
        open_executor("ray", address="127.0.0.1:1")
