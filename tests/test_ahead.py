"""What workers do for a campaign before its turn changes neither what comes out nor what is recorded."""

import threading
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from memory import Memory
from stand import Stand, named, same

from qtrack import Ledger
from qtrack.ahead import Ahead, Wanted
from qtrack.api import sensitivity
from qtrack.campaign import _inspect, run_plan
from qtrack.cli import main
from qtrack.engine import execute, training
from qtrack.executors import WorkerLost
from qtrack.monitor import SILENT
from qtrack.outcome import Stopped
from qtrack.pipeline import read_plan
from qtrack.rewriting import foreseen
from qtrack.scratch import Scratch

TASK = Path(__file__).with_name("tiny.py")
STAGES = ["float", "ptq", {"qat": {"epochs": 1}}, {"fallback": {"from": "ptq"}}, "bias_correction"]
COARSE = {"engine": "x86", "default": {"mode": "static", "weight": {"bits": 3}}}


def plan(folder, **fields):
    written = {"name": "p", "task": f"{TASK}:Tiny", "recipe": COARSE, "stages": STAGES, "threads": 1}
    (folder / "p.yaml").write_text(yaml.safe_dump({**written, "target": {"max_drop": 0.0}, **fields}))
    return read_plan(folder / "p.yaml")


def results(plan, executor=None):
    memory = Memory()
    run_plan(plan, memory, executor=executor)
    return memory


def test_a_campaign_comes_to_the_same_with_workers(tmp_path, caplog):
    executor = Stand()
    caplog.set_level("WARNING")
    alone, helped = results(plan(tmp_path)), results(plan(tmp_path), executor)
    assert len(executor.jobs) > len(foreseen(plan(tmp_path))) == 3
    for one, other in zip(alone.results, helped.results, strict=True):
        same(one.judged.outcome, other.judged.outcome)
        assert (one.name, one.judged.meets_target) == (other.name, other.judged.meets_target)
        assert alone.stages[one.name].points == helped.stages[one.name].points
        for probe, its in zip(one.probes, other.probes, strict=True):
            same(probe.outcome, its.outcome)
    assert "executed here" not in caplog.text
    assert alone.stages["qat"].points
    assert any(one.probes for one in alone.results)


def test_what_can_be_foreseen_needs_no_execution(tmp_path):
    stages = ["float", "ptq", "fallback", "bias_correction", {"per_channel": {"from": "ptq"}}]
    found = foreseen(plan(tmp_path, stages=stages))
    assert [recipe.quantizes for recipe in found] == [False, True, True]  # not what starts from fallback


@pytest.mark.slow
def test_a_search_says_what_it_may_try_next(tmp_path):
    executor = Stand(slots=8)
    memory = results(plan(tmp_path, stages=["float", "ptq", "fallback"]), executor)
    tried = {probe.outcome.recipe.digest for probe in memory.results[-1].probes}
    probes = [job.arguments["recipe"].digest for job in executor.jobs if not job.arguments["thorough"]]
    assert tried <= set(probes)
    assert len(probes) == len(set(probes))


def test_a_search_in_batches_tries_the_same_with_workers(tmp_path):
    pytest.importorskip("optuna", reason="needs qtrack[search]")
    stages = ["float", {"search": {"trials": 7, "batch": 3}}]
    executor, plan_ = Stand(slots=3), plan(tmp_path, stages=stages)
    alone, helped = results(plan_), results(plan_, executor)
    found, its = alone.results[-1], helped.results[-1]
    same(found.judged.outcome, its.judged.outcome)
    for probe, other in zip(found.probes, its.probes, strict=True):
        same(probe.outcome, other.outcome)
    assert found.searched.failures == its.searched.failures
    assert len(found.probes) + len(found.searched.failures) == 7
    assert sum(not job.arguments["thorough"] for job in executor.jobs) == 7


def test_a_search_s_guesses_are_dropped_where_they_were_wrong(tmp_path):
    plan_ = plan(tmp_path)
    ahead = Ahead(_inspect(plan_, SILENT), Stand(slots=4))
    wanted = [Wanted(recipe, thorough=False) for recipe in foreseen(plan_)]
    ahead.guess(wanted[:2])
    ahead.guess(wanted[2:])
    assert ahead.outcome(wanted[0], SILENT) is None
    assert ahead.outcome(wanted[2], SILENT).recipe == wanted[2].recipe


def test_an_evaluation_ends_where_it_would_have_ended_here(tmp_path):
    plan_ = plan(tmp_path)
    recipe = foreseen(plan_)[1]

    def enough(scores):
        return len(scores) >= 20

    ahead = Ahead(_inspect(plan_, SILENT), Stand())
    ahead.guess([Wanted(recipe, thorough=False)])
    with pytest.raises(Stopped) as here:
        execute(plan_.task, recipe, thorough=False, until=enough)
    with pytest.raises(Stopped) as there:
        ahead.outcome(Wanted(recipe, thorough=False), SILENT, enough)
    assert len(there.value.scores) == 32
    assert np.array_equal(here.value.scores, there.value.scores)


def test_a_worker_that_is_lost_has_its_recipe_tried_again(tmp_path, caplog):
    plan_ = plan(tmp_path, stages=["float", "ptq"])
    executor = Stand(slots=1, lost=2)
    assert len(results(plan_, executor).stages) == 2
    assert caplog.text.count("it is tried again") == 2
    with pytest.raises(WorkerLost):
        results(plan_, Stand(slots=1, lost=99))


def test_training_that_was_lost_with_its_worker_goes_on_after_its_last_epoch(tmp_path, monkeypatch):
    plan_, epochs = plan(tmp_path, stages=["float", {"qat": {"epochs": 2}}]), []
    alone = results(plan_)

    def begin(*given, real=training._begin_epoch):
        epochs.append(given[-1])
        if len(epochs) == 2:
            raise WorkerLost("its node is gone")
        real(*given)

    monkeypatch.setattr(training, "_begin_epoch", begin)
    helped, folder = Memory(), tmp_path / "scratch"
    run_plan(plan_, helped, executor=Stand(), scratch=Scratch(folder))
    same(alone.results[-1].judged.outcome, helped.results[-1].judged.outcome)
    assert alone.stages["qat"].points == helped.stages["qat"].points
    assert epochs == [0, 1, 1]
    assert list(folder.glob("*.pt")) == []


def test_fresh_training_on_a_worker_begins_with_its_first_epoch(tmp_path, monkeypatch):
    plan_, folder = plan(tmp_path, stages=["float", {"qat": {"epochs": 2}}]), tmp_path / "scratch"

    def stop(*given, real=training._begin_epoch):
        if given[-1] == 1:
            raise KeyboardInterrupt
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "_begin_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan_, Memory(), scratch=Scratch(folder))
    assert len(list(folder.glob("*.pt"))) == 1
    epochs = []
    monkeypatch.setattr(training, "_begin_epoch", lambda *given: epochs.append(given[-1]))
    run_plan(plan_, Memory(), scratch=Scratch(folder), executor=Stand(), fresh=True)
    assert epochs == [0, 1]


def test_a_recipe_that_was_lost_waits_for_a_worker_that_has_another_by_now(tmp_path):
    class One(Stand):
        """A single worker, whose first job is lost and whose second takes a while."""

        held = None

        def submit(self, job):
            assert self.held is None or self.held.done()
            future = super().submit(job)
            if len(self.jobs) == 2:
                self.held = Future()
                threading.Timer(0.3, lambda: self.held.set_result(future.result())).start()
                return self.held
            return future

    plan_ = plan(tmp_path)
    ahead = Ahead(_inspect(plan_, SILENT), One(slots=1, lost=1))
    wanted = [Wanted(recipe, thorough=False) for recipe in foreseen(plan_)[:2]]
    ahead.plan(wanted)
    ahead.guess([])
    for one in wanted:
        assert ahead.outcome(one, SILENT).recipe == one.recipe


def test_a_worker_that_would_come_to_something_else_is_not_used(tmp_path, caplog):
    executor, plan_ = Stand(), plan(tmp_path, stages=["float", "ptq"])

    def calibration(self):
        yield from list(type(plan_.task).calibration(self))[1:]

    found = results(replace(plan_, task=named(plan_, "Tiny", calibration=calibration)), executor)
    assert len(found.stages) == 2
    assert "data.calibration" in caplog.text
    assert caplog.text.count("all is executed here") == 1


def test_a_worker_that_has_no_such_task_is_not_used(tmp_path, caplog):
    plan_ = plan(tmp_path, stages=["float", "ptq"])
    assert len(results(replace(plan_, task=named(plan_, "Gone")), Stand()).stages) == 2
    assert "a worker cannot load the task" in caplog.text


def test_an_executor_that_works_in_this_process_begins_on_nothing(tmp_path):
    executor = Stand()
    executor.aside = False
    results(plan(tmp_path, stages=["float", "ptq"]), executor)
    assert executor.jobs == []


def test_workers_that_share_an_exact_sweep_come_to_the_same_sums(tmp_path):
    plan(tmp_path, stages=["ptq"])
    executor = Stand(slots=1)
    alone = sensitivity(tmp_path / "p.yaml", exact=True)
    shared = sensitivity(tmp_path / "p.yaml", exact=True, executor=executor)
    assert len(executor.jobs) == 4
    assert [(one.layer, one.alone, one.back) for one in shared.shares] == [
        (one.layer, one.alone, one.back) for one in alone.shares
    ]
    assert shared.exact_forward_samples == alone.exact_forward_samples


def test_an_exact_sweep_goes_on_where_a_worker_is_lost(tmp_path):
    plan(tmp_path, stages=["ptq"])
    assert sensitivity(tmp_path / "p.yaml", exact=True, executor=Stand(slots=1, lost=2)).exact_seconds > 0
    with pytest.raises(WorkerLost):
        sensitivity(tmp_path / "p.yaml", exact=True, executor=Stand(slots=1, lost=99))


def test_a_task_that_no_file_holds_is_executed_here(tmp_path, caplog):
    plan_ = plan(tmp_path, stages=["float", "ptq"])
    shell = named(plan_, "Shell", __module__="nowhere")
    assert len(results(replace(plan_, task=shell), Stand()).stages) == 2
    assert "has no file from which another process could load it" in caplog.text


@pytest.mark.slow
def test_the_command_with_processes_records_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan(tmp_path)
    recorded = {}
    for name, arguments in {"alone": [], "processes": ["--executor", "processes", "--workers", "2"]}.items():
        uri = f"sqlite:///{tmp_path / name}.db"
        done = CliRunner().invoke(main, ["run", "p.yaml", "--fresh", "--tracking-uri", uri, *arguments])
        assert done.exit_code == 0, done.output
        ledger = Ledger.open(uri)
        recorded[name] = []
        for stage in ledger.strategies():
            result = ledger.recorded(stage.run_id).result
            digests = stage.recipe_digest, result.parameters, result.behaviour
            recorded[name].append((stage.stage, *digests, ledger.layers(stage.run_id)))
    assert recorded["alone"] == recorded["processes"]
    assert len(recorded["alone"]) == 5
