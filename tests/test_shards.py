"""An evaluation that workers share, run of batches by run of batches, is the one that is made here."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from memory import Memory
from stand import Stand, named, same

from qtrack import campaign, remote
from qtrack.ahead import Ahead
from qtrack.campaign import _inspect, run_plan
from qtrack.engine import execute
from qtrack.executors import WorkerLost, open_executor
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


@pytest.fixture(autouse=True)
def same_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def plan(folder, **fields):
    written = {"name": "p", "task": f"{TASK}:Tiny", "recipe": {"engine": "x86"}, "threads": 1}
    (folder / "p.yaml").write_text(yaml.safe_dump({**written, "stages": ["float", "ptq"], **fields}))
    return read_plan(folder / "p.yaml")


def shared(plan, recipe, executor, **how):
    ahead = Ahead(_inspect(plan, SILENT), executor)
    return execute(plan.task, recipe, sizes=SIZES, elsewhere=ahead.parts, **how)


def same_evaluation(one, other):
    assert np.array_equal(one.scores, other.scores)
    assert one.scores.dtype == other.scores.dtype
    assert np.array_equal(one.labels, other.labels)
    assert np.array_equal(one.predictions, other.predictions)
    assert one.output_digest == other.output_digest
    assert one.nonfinite == other.nonfinite
    assert one.extra == other.extra


@pytest.mark.parametrize("name", RECIPES)
def test_an_evaluation_that_is_shared_is_the_same(tmp_path, name):
    executor = Stand()
    recipe = RECIPES[name]
    alone, helped = execute(plan(tmp_path).task, recipe), shared(plan(tmp_path), recipe, executor)
    asked = [(job.arguments["split"], job.arguments["first"]) for job in executor.jobs]
    assert asked == [("validation", n) for n in range(0, 13, 2)] + [("test", n) for n in range(7)]
    same(alone, helped)
    same_evaluation(alone.validation, helped.validation)
    same_evaluation(alone.test, helped.test)
