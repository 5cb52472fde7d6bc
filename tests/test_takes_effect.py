"""Every field that a recipe accepts changes the model, or its scales."""

import pytest
import torch
from tiny import Tiny

from qtrack.engine import execute
from qtrack.recipe import Float, Histogram, MinMax, MovingAverage, Override, Recipe, Training

STATIC = Recipe(engine="x86", seed=1)
CHANNELS = STATIC.with_weights(granularity="per_channel")
TRAINED = (
    Recipe(engine="x86", training=Training(epochs=2, freeze_bn_stats=None))
    .with_activations(observer=MovingAverage())
    .with_weights(observer=MovingAverage())
)


def parameters(recipe):
    return execute(Tiny(), recipe, thorough=False).digests["parameters"]


def behaviour(recipe):
    return execute(Tiny(), recipe, thorough=False).digests["behaviour"]


def calibrated(**changes):
    return STATIC.having(calibration=STATIC.calibration.having(**changes))


def trained(**changes):
    return TRAINED.having(training=TRAINED.training.having(**changes))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(STATIC, STATIC.with_mode("dynamic"), id="mode dynamic"),
        pytest.param(STATIC, STATIC.with_mode("weight_only"), id="mode weight_only"),
        pytest.param(STATIC, STATIC.with_mode("float16"), id="mode float16"),
        pytest.param(STATIC, STATIC.with_mode("float"), id="mode float"),
        pytest.param(STATIC, CHANNELS, id="weight.granularity"),
        pytest.param(STATIC, STATIC.with_weights(bits=4), id="weight.bits"),
        pytest.param(STATIC, STATIC.with_weights(symmetric=False), id="weight.symmetric"),
        pytest.param(STATIC, STATIC.with_weights(observer="histogram"), id="weight.observer"),
        pytest.param(
            STATIC.with_weights(observer="histogram"),
            STATIC.with_weights(observer=Histogram(bins=32)),
            id="weight bins",
        ),
        pytest.param(STATIC, STATIC.with_activations(bits=6), id="activation.bits"),
        pytest.param(STATIC, STATIC.with_activations(symmetric=True), id="activation.symmetric"),
        pytest.param(STATIC, STATIC.with_activations(reduce_range=True), id="activation.reduce_range"),
        pytest.param(STATIC, STATIC.with_activations(observer="min_max"), id="activation min_max"),
        pytest.param(
            STATIC, STATIC.with_activations(observer="moving_average"), id="activation moving_average"
        ),
        pytest.param(STATIC, STATIC.with_activations(observer=Histogram(bins=64)), id="histogram.bins"),
        pytest.param(
            STATIC.with_activations(observer=MovingAverage()),
            STATIC.with_activations(observer=MovingAverage(averaging_constant=0.5)),
            id="moving_average.averaging_constant",
        ),
        pytest.param(STATIC, STATIC.keeping_float("block.conv"), id="overrides.layer"),
        pytest.param(
            STATIC, STATIC.having(overrides=[Override(glob="bl*", scheme=Float())]), id="overrides.glob"
        ),
        pytest.param(
            STATIC, STATIC.having(overrides=[Override(type="Linear", scheme=Float())]), id="overrides.type"
        ),
        pytest.param(
            STATIC,
            STATIC.having(overrides=[{"layer": "head", "scheme": {"mode": "static", "weight": {"bits": 5}}}]),
            id="overrides.scheme",
        ),
        pytest.param(calibrated(), calibrated(samples=16), id="calibration.samples"),
        pytest.param(
            calibrated(samples=16), calibrated(samples=16, choice="random"), id="calibration.choice"
        ),
        pytest.param(
            calibrated(samples=18, choice="random"),
            calibrated(samples=18, choice="class_balanced"),
            id="class_balanced",
        ),
        pytest.param(
            calibrated(samples=16, choice="random"),
            calibrated(samples=16, choice="random", seed=2),
            id="calibration.seed",
        ),
        pytest.param(
            calibrated(samples=16, choice="random"),
            calibrated(samples=16, choice="random").having(seed=2),
            id="seed",
        ),
        pytest.param(STATIC, TRAINED, id="training"),
        pytest.param(trained(), trained(epochs=3), id="training.epochs"),
        pytest.param(trained(), trained(optimizer="sgd"), id="training.optimizer sgd"),
        pytest.param(trained(), trained(optimizer="adamw"), id="training.optimizer adamw"),
        pytest.param(trained(), trained(lr=1e-4), id="training.lr"),
        pytest.param(trained(), trained(schedule="cosine"), id="training.schedule"),
        pytest.param(trained(), trained(freeze_observers=0), id="training.freeze_observers"),
        pytest.param(trained(), trained(freeze_bn_stats=0), id="training.freeze_bn_stats"),
        pytest.param(trained(), trained(seed=5), id="training.seed"),
    ],
)
def test_changing_the_field_changes_the_parameters(before, after):
    assert parameters(before) != parameters(after)


@pytest.mark.skipif("qnnpack" not in torch.backends.quantized.supported_engines, reason="no qnnpack here")
def test_changing_the_engine_changes_the_behaviour_alone():
    other = STATIC.having(engine="qnnpack")
    assert parameters(STATIC) == parameters(other)
    assert behaviour(STATIC) != behaviour(other)


def test_the_same_recipe_gives_the_same_parameters():
    assert parameters(STATIC) == parameters(STATIC)
    assert parameters(TRAINED) == parameters(TRAINED)


def test_observers_of_one_batch_agree_with_min_max():
    one_batch = STATIC.having(calibration=STATIC.calibration.having(samples=16))
    ranges = [
        execute(Tiny(), one_batch.with_activations(observer=o), thorough=False).qparams["stem.scale"]
        for o in (MinMax(), MovingAverage(averaging_constant=0.3))
    ]
    assert ranges[0] == pytest.approx(ranges[1])
