"""An evaluation that workers share, run of batches by run of batches, is the one that is made here."""

import math
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from memory import Memory
from stand import Stand, named, same

from qtrack import remote, shards
from qtrack.ahead import Ahead, Wanted
from qtrack.campaign import _inspect, run_plan
from qtrack.engine import execute
from qtrack.engine.evaluation import Begun
from qtrack.errors import DataError
from qtrack.executors import Job, Watched, WorkerLost, open_executor
from qtrack.monitor import SILENT
from qtrack.outcome import Stopped
from qtrack.pipeline import read_plan
from qtrack.recipe import Recipe

TASK = Path(__file__).with_name("tiny.py")
STATIC = Recipe(engine="x86")
SIZES = {"validation": 200, "test": 100}
RECIPES = {
    "fx": STATIC,
    "float": STATIC.with_mode("float"),
    "eager": Recipe(backend="eager", engine="x86"),
    "pt2e": Recipe(backend="pt2e"),
    "torchao": Recipe.model_validate(
        {"backend": "torchao", "default": {"mode": "weight_only", "weight": {"granularity": "per_channel"}}}
    ),
}


@pytest.fixture
def eager(monkeypatch):
    """However short an evaluation is, it is shared."""
    monkeypatch.setattr(shards, "START_S", -math.inf)


def plan(folder, **fields):
    written = {"name": "p", "task": f"{TASK}:Tiny", "recipe": {"engine": "x86"}, "threads": 1}
    (folder / "p.yaml").write_text(yaml.safe_dump({**written, "stages": ["float", "ptq"], **fields}))
    return read_plan(folder / "p.yaml")


def shared(plan, recipe, executor, monitor=SILENT, **how):
    ahead = Ahead(_inspect(plan, SILENT), executor)
    return execute(plan.task, recipe, None, monitor, sizes=SIZES, elsewhere=ahead.parts, **how)


def same_evaluation(one, other):
    assert np.array_equal(one.scores, other.scores)
    assert one.scores.dtype == other.scores.dtype
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.predictions, other.predictions)
    assert one.output_digest == other.output_digest
    assert one.nonfinite == other.nonfinite
    assert one.extra == other.extra


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", RECIPES)
def test_an_evaluation_that_is_shared_is_the_same(tmp_path, name):
    executor = Stand()
    recipe = RECIPES[name]
    alone, helped = execute(plan(tmp_path).task, recipe), shared(plan(tmp_path), recipe, executor)
    asked = [(job.arguments["split"], job.arguments["first"]) for job in executor.jobs]
    assert asked == [("validation", n) for n in range(2, 13, 2)] + [("test", n) for n in range(2, 7)]
    same(alone, helped)
    same_evaluation(alone.validation, helped.validation)
    same_evaluation(alone.test, helped.test)


def enough(scores):
    return len(scores) >= 60


@pytest.mark.usefixtures("eager")
def test_an_evaluation_that_is_shared_ends_where_it_would_have_ended_here(tmp_path):
    executor = Stand()
    with pytest.raises(Stopped) as here:
        execute(plan(tmp_path).task, STATIC, thorough=False, until=enough)
    with pytest.raises(Stopped) as there:
        shared(plan(tmp_path), STATIC, executor, thorough=False, until=enough)
    assert len(there.value.scores) == 64
    assert np.array_equal(here.value.scores, there.value.scores)
    assert here.value.cost.forward_samples == there.value.cost.forward_samples
    assert len(executor.jobs) < 7


class Holding(Stand):
    """Knows how much is placed with it, and how often anything was."""

    held = ever = 0

    @contextmanager
    def placed(self, content):
        self.held, self.ever = self.held + 1, self.ever + 1
        try:
            with super().placed(content) as state:
                yield state
        finally:
            self.held -= 1


def interrupted(scores):
    if enough(scores):
        raise KeyboardInterrupt
    return False


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("until", "end"), [(enough, Stopped), (interrupted, KeyboardInterrupt)])
def test_nothing_is_held_for_an_evaluation_that_ended_early(tmp_path, until, end):
    executor, watching = Holding(), Counting()
    with pytest.raises(end) as ended:
        shared(plan(tmp_path), STATIC, executor, watching, until=until)
    assert ended.tb  # which may live for long
    assert (executor.ever, executor.held) == (1, 0)
    assert watching.ended[-1] == "validation"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("lost", [1, 2])
def test_a_worker_that_is_lost_has_its_batches_tried_again(tmp_path, caplog, lost):
    alone = execute(plan(tmp_path).task, STATIC)
    same_evaluation(alone.validation, shared(plan(tmp_path), STATIC, Stand(lost=lost)).validation)
    assert caplog.text.count("it is tried again") == lost


@pytest.mark.usefixtures("eager")
def test_workers_that_are_lost_one_after_another_end_it(tmp_path):
    with pytest.raises(WorkerLost):
        shared(plan(tmp_path), STATIC, Stand(lost=99))


@pytest.mark.usefixtures("eager")
def test_workers_that_would_come_to_something_else_evaluate_nothing(tmp_path, caplog):
    executor, plan_ = Stand(), plan(tmp_path)

    def calibration(self):
        yield from list(type(plan_.task).calibration(self))[1:]

    other = replace(plan_, task=named(plan_, "Tiny", calibration=calibration))
    alone, helped = execute(other.task, STATIC), shared(other, STATIC, executor)
    same_evaluation(alone.validation, helped.validation)
    same_evaluation(alone.test, helped.test)
    assert caplog.text.count("all is executed here") == 1
    assert "data.calibration" in caplog.text
    assert len(executor.jobs) == 2


class Changing(Stand):
    """Its workers are others after so many jobs."""

    def submit(self, job):
        if len(self.jobs) < 3:
            return super().submit(job)
        future = Future()
        future.set_exception(remote.OtherIngredients("cpu.model is another on a worker"))
        return future


@pytest.mark.usefixtures("eager")
def test_what_workers_have_evaluated_stands_where_the_next_would_come_to_something_else(tmp_path, caplog):
    watching = Counting()
    alone, helped = execute(plan(tmp_path).task, STATIC), shared(plan(tmp_path), STATIC, Changing(), watching)
    same(alone, helped)
    same_evaluation(alone.validation, helped.validation)
    assert watching.done == {"validation": 200, "test": 100, "calibrate": 64, "compare layers": 64}
    assert caplog.text.count("all is executed here") == 1


class Counting:
    """A monitor that counts samples, and notes which phases have ended."""

    def __init__(self):
        self.done, self.ended = {}, []

    @contextmanager
    def phase(self, name, total):
        def advance(samples):
            self.done[name] = self.done.get(name, 0) + samples

        try:
            yield advance
        finally:
            self.ended.append(name)


WAYWARD = f"""
import sys
sys.path.insert(0, {str(TASK.parent)!r})
from tiny import Tiny, TinyNet
import torch

class Noisy(TinyNet):
    def forward(self, x):
        x = super().forward(x)
        return x + torch.rand_like(x)

class Chancy(Tiny):
    def model(self):
        net = Noisy()
        net.load_state_dict(Tiny.model(self).state_dict())
        return net.eval()

class Odd(Tiny):
    def validation(self):
        for index, (images, labels) in enumerate(Tiny.validation(self)):
            yield images[..., 1:] if index == 5 else images, labels
"""


def wayward(folder, name):
    (folder / "wayward.py").write_text(WAYWARD)
    return plan(folder, task=f"wayward.py:{name}")


@pytest.mark.usefixtures("eager")
def test_a_model_that_draws_random_numbers_is_evaluated_here(tmp_path):
    plan_, executor = wayward(tmp_path, "Chancy"), Stand()
    alone, helped = execute(plan_.task, STATIC), shared(plan_, STATIC, executor)
    same_evaluation(alone.validation, helped.validation)
    assert executor.jobs == []


@pytest.mark.usefixtures("eager")
def test_an_error_is_the_one_that_would_have_been_raised_here(tmp_path):
    plan_ = wayward(tmp_path, "Odd")
    with pytest.raises(DataError) as here:
        execute(plan_.task, STATIC)
    with pytest.raises(DataError) as there:
        shared(plan_, STATIC, Stand(slots=8))
    assert str(here.value) == str(there.value)
    assert "validation batch 5 of shape 16x1x6x5" in str(there.value)
    with pytest.raises(Stopped):  # before it gets there
        shared(plan_, STATIC, Stand(slots=8), until=enough)


def test_a_split_is_read_on_or_from_its_beginning(tmp_path):
    reading = remote._Reading(plan(tmp_path).task, "validation")
    everything = plan(tmp_path).task.validation()

    def places(found):
        return [next(n for n, one in enumerate(everything) if torch.equal(one[0], b[0])) for b in found]

    assert places(reading.batches(0, 2)) == [0, 1]
    assert places(reading.batches(4, 3)) == [4, 5, 6]
    assert places(reading.batches(1, 2)) == [1, 2]
    assert places([next(reading.batches(5, 4))]) == [5]  # and what is left of it is not read
    assert places(reading.batches(7, 2)) == [7, 8]
    assert places(reading.batches(12, 5)) == [12]


class Stuck(Stand):
    """Never done with the jobs of these numbers."""

    def __init__(self, *numbers, slots):
        super().__init__(slots)
        self.numbers = numbers

    def submit(self, job):
        if len(self.jobs) not in self.numbers:
            return super().submit(job)
        self.jobs.append(job)
        return Future()


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(("slots", "helps"), [(1, False), (2, False), (3, True)])
def test_an_evaluation_is_shared_by_two_workers_at_least(tmp_path, slots, helps):
    plan_, executor = plan(tmp_path), Stuck(0, slots=slots)
    ahead = Ahead(_inspect(plan_, SILENT), executor)
    ahead.plan([Wanted(STATIC)])
    outcome = execute(plan_.task, STATIC, sizes=SIZES, elsewhere=ahead.parts)
    assert outcome.value == execute(plan_.task, STATIC, thorough=False).value
    assert (len(executor.jobs) > 1) == helps


@pytest.mark.usefixtures("eager")
def test_what_runs_already_keeps_its_slot(tmp_path):
    plan_, executor = plan(tmp_path), Stuck(0, slots=3)
    ahead = Ahead(_inspect(plan_, SILENT), executor)
    ahead.plan([Wanted(STATIC)])
    floating = plan_.task.model()
    next(ahead.parts(Begun(STATIC.with_mode("float"), floating, "validation", 2, 1.0, 0.0)))
    assert len(executor.jobs) == 3


def test_what_runs_is_known_as_it_is_now():
    executor = Watched(Stuck(1, 2, slots=3))
    executor.submit(Job("done", "builtins:dict"))
    stuck = executor.submit(Job("stuck", "builtins:dict"))
    running = executor.running()
    executor.submit(Job("stuck too", "builtins:dict"))
    assert running == {stuck}


@pytest.mark.usefixtures("eager")
def test_batches_that_others_have_evaluated_are_not_read_here(tmp_path):
    plan_, read = plan(tmp_path), []

    def validation(self):
        for batch in type(plan_.task).validation(self):
            read.append(batch)
            yield batch

    ahead = Ahead(_inspect(plan_, SILENT), Stand())
    task = named(plan_, "Tiny", validation=validation)
    execute(task, STATIC, thorough=False, sizes=SIZES, elsewhere=ahead.parts)
    assert len(read) == 2


@pytest.mark.usefixtures("eager")
def test_a_single_worker_is_not_asked(tmp_path):
    executor = Stand(slots=1)
    shared(plan(tmp_path), STATIC, executor)
    assert executor.jobs == []


@pytest.mark.usefixtures("eager")
def test_what_goes_on_after_an_early_end_still_takes_its_slot(tmp_path):
    plan_, executor = plan(tmp_path), Stuck(1, slots=2)
    ahead = Ahead(_inspect(plan_, SILENT), executor)
    with pytest.raises(Stopped):
        execute(
            plan_.task, STATIC, thorough=False, until=lambda scores: len(scores) > 32, elsewhere=ahead.parts
        )
    assert len(executor.jobs) == 2
    executor.numbers = 2, 3
    ahead.guess([Wanted(STATIC, thorough=False), Wanted(STATIC.with_mode("float"), thorough=False)])
    assert len(executor.jobs) == 3


def results(plan, executor=None):
    memory = Memory()
    run_plan(plan, memory, executor=executor)
    return memory.results


def evaluations(executor):
    return [job for job in executor.jobs if "split" in job.arguments]


STAGES = ["float", "ptq", "fallback", "bias_correction"]
HARD = {"engine": "x86", "default": {"mode": "static", "weight": {"bits": 3}}}


@pytest.mark.usefixtures("eager")
def test_a_campaign_has_what_it_executes_itself_evaluated_by_workers(tmp_path):
    plan_, executor = plan(tmp_path, recipe=HARD, stages=STAGES, target={"max_drop": 0.0}), Stand()
    for one, other in zip(results(plan_), results(plan_, executor), strict=True):
        same(one.judged.outcome, other.judged.outcome)
        same_evaluation(one.judged.outcome.test, other.judged.outcome.test)
    assert evaluations(executor)


def test_a_short_evaluation_is_not_shared(tmp_path):
    plan_, executor = plan(tmp_path, recipe=HARD, stages=STAGES, target={"max_drop": 0.0}), Stand()
    results(plan_, executor)
    assert executor.jobs
    assert not evaluations(executor)


@pytest.mark.parametrize(
    ("batch_s", "model_s", "workers", "worth"),
    [
        (0.02, 0.0, 2, True),  # 10 s are left, of which workers save 5
        (0.02, 1.1, 2, False),
        (0.02, 1.1, 3, True),
        (0.015, 0.0, 2, False),
        (1.0, 0.0, 1, False),
    ],
)
def test_an_evaluation_is_shared_where_that_saves_more_than_it_takes(batch_s, model_s, workers, worth):
    begun = Begun(STATIC, None, "validation", 2, batch_s, model_s)
    assert shards.is_worth_it(begun, 502, workers) == worth


def test_what_others_are_told_has_been_measured(tmp_path):
    found = []
    execute(plan(tmp_path).task, STATIC, sizes=SIZES, elsewhere=lambda begun: found.append(begun) or ())
    assert [(one.split, one.batches) for one in found] == [("validation", 2), ("test", 2)]
    assert all(0 < one.batch_s < one.model_s for one in found)


@pytest.mark.usefixtures("eager")
def test_workers_with_a_gpu_each_evaluate_nothing(tmp_path):
    executor, plan_ = Stand(), plan(tmp_path)
    setting = _inspect(plan_, SILENT)
    on_gpu = replace(plan_, pipeline=plan_.pipeline.model_copy(update={"device": "cuda"}))
    begun = Begun(STATIC.with_mode("float"), plan_.task.model(), "validation", 2, 1.0, 0.0)
    assert not list(Ahead(replace(setting, plan=on_gpu), executor).parts(begun))
    assert executor.jobs == []
    assert len(list(Ahead(setting, executor).parts(begun))) == 11


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own, of its threads and sockets
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["processes", "ray"])
def test_an_evaluation_that_other_processes_share_is_the_same(tmp_path, name):
    pytest.importorskip("ray" if name == "ray" else "qtrack", reason="needs qtrack[ray]")
    plan_, recipe = plan(tmp_path), STATIC.having(engine="qnnpack")
    alone = execute(plan_.task, recipe)
    with open_executor(name, workers=2) as executor:
        helped = shared(plan_, recipe, executor)
        with pytest.raises(Stopped) as stopped:
            shared(plan_, recipe, executor, until=enough)
    same(alone, helped)
    same_evaluation(alone.validation, helped.validation)
    same_evaluation(alone.test, helped.test)
    assert np.array_equal(stopped.value.scores, alone.validation.scores[:64])
