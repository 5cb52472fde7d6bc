"""The same recipe with FX and with pt2e, on the digits network: how far apart is what comes out?

Scales of weights are equal to the bit. What differs is the last pool, whose result FX rounds once more, and
with it a few samples (4 dB of its own SQNR; 0.1 dB of every other layer's; half a point of accuracy).
"""

from functools import cache
from pathlib import Path

import pytest

from qtrack.engine import execute
from qtrack.recipe import Recipe
from qtrack.task import load_task

PIPELINES = Path(__file__).parents[1] / "pipelines"
PTQ = Recipe()
CHANNELS = PTQ.with_weights(granularity="per_channel")
BOTH = pytest.mark.parametrize("recipe", [PTQ, CHANNELS], ids=["per tensor", "per channel"])


@cache
def both(recipe):
    task = load_task("digits.py:Digits", PIPELINES)
    return tuple(execute(task, recipe.having(backend=name)) for name in ("fx", "pt2e"))


def layers(outcome):
    return {row.layer: row for row in outcome.layers}


def accuracy(outcome):
    return sum(outcome.validation.scores) / len(outcome.validation.scores)


@pytest.mark.slow
@BOTH
def test_scales_of_weights_are_equal_to_the_bit(recipe):
    fx, pt2e = both(recipe)
    names = [
        f"{row.layer}.weight.{part}" for row in fx.layers if row.params for part in ("scale", "zero_point")
    ]
    assert len(names) == 2 * 17
    assert [fx.qparams[name] for name in names] == [pt2e.qparams[name] for name in names]


@BOTH
def test_layers_have_the_same_error(recipe):
    fx, pt2e = map(layers, both(recipe))
    assert list(fx) == list(pt2e)
    for name in fx:
        own_apart = 4.0 if name == "pool" else 0.1
        assert pt2e[name].own_sqnr_db == pytest.approx(fx[name].own_sqnr_db, abs=own_apart)
        assert pt2e[name].sqnr_db == pytest.approx(fx[name].sqnr_db, abs=0.1)


@BOTH
def test_accuracy_is_the_same_within_half_a_point(recipe):
    fx, pt2e = map(accuracy, both(recipe))
    assert abs(fx - pt2e) <= 0.005
