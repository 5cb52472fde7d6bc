"""The benchmarks of searches measure what they say."""

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tiny

from qtrack.stages import Target

FOLDER = str(Path(__file__).parents[1] / "benchmarks")


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a benchmark; the files beside it are its modules."""
    monkeypatch.setattr(sys, "path", [FOLDER, *sys.path])
    return import_module


@pytest.mark.parametrize("own", [0.0, 0.5])
def test_made_up_scores_drop_by_what_the_network_truly_loses(benchmark, own):
    confidence = benchmark("confidence")
    rng = np.random.default_rng(0)
    made = confidence.plateau(rng)
    validation = confidence.Validation(made, 200_000, own, Target(), rng)
    for recipe in (confidence.START, confidence.START.keeping_float(*made.ranked[:5])):
        drop = validation.probe(recipe).drop
        assert made.true_drop(recipe) == pytest.approx(drop.value, abs=0.002)


def test_a_plateau_lies_just_beyond_its_target(benchmark):
    confidence = benchmark("confidence")
    made = confidence.plateau(np.random.default_rng(0))
    kept = [confidence.START.keeping_float(*made.ranked[:count]) for count in range(4, 21)]
    beyond = [made.true_drop(recipe) - 0.02 for recipe in kept]
    assert all(0 < drop < 0.002 for drop in beyond[:15])
    assert made.fewest(0.02) == 19


def test_a_search_is_asked_the_same_twice_and_answers_the_same(benchmark):
    confidence = benchmark("confidence")
    target = Target(max_drop=0.02)
    once, again = (
        confidence.searches(confidence.exhaustive, "even", samples=300, own=0.5, target=target, count=2)
        for _ in range(2)
    )
    assert once == again


def test_a_task_cut_to_some_samples_validates_on_these_alone(benchmark):
    contenders = benchmark("search_contenders")
    task = tiny.Tiny()
    cut = contenders.only(task, [1, 20, 21])
    images = [image for batch, _ in cut.validation() for image in batch]
    whole = [image for batch, _ in task.validation() for image in batch]
    assert len(images) == 3
    assert all((image == whole[i]).all() for image, i in zip(images, [1, 20, 21], strict=True))
