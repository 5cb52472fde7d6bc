"""What an observer would bring is estimated from a sketch, near what it really brings."""

import math
import time

import pytest
import torch
from tiny import Tiny
from torch.ao.quantization import HistogramObserver, MinMaxObserver

from qtrack.backends.observers import SCHEMES, activation_bounds, percentile_class
from qtrack.engine import execute
from qtrack.numerics.ranges import Estimates, Spread
from qtrack.numerics.sums import Reference
from qtrack.recipe import ActivationSpec, Recipe

OBSERVERS = {
    "min_max_db": MinMaxObserver,
    "percentile_db": lambda **given: percentile_class(HistogramObserver)(quantile=0.9999, **given),
    "histogram_db": HistogramObserver,
}
SPECS = {
    "affine": ActivationSpec(),
    "symmetric": ActivationSpec(symmetric=True),
    "reduced": ActivationSpec(reduce_range=True),
    "4 bits": ActivationSpec(bits=4),
}


def spiked(x, size):
    x = x.clone()
    x[7, 5] = size
    return x


def values(kind, samples=512, size=64):
    x = torch.randn(samples, size, generator=torch.Generator().manual_seed(3))
    return {
        "gaussian": x,
        "rectified": x.relu(),
        "shifted": x + 3,
        "negative": -x.abs() - 0.5,
        "heavy tailed": x**3,
        "outlier": spiked(x, 100.0),
        "huge outlier": spiked(x.relu(), 1e4),
        "an outlier in each sample": torch.cat([x, 30 + torch.rand(samples, 1)], 1),
    }[kind]


def estimated(x, spec):
    spread = Spread()
    for rows in x.split(64):
        reference = Reference(rows)
        reference.learn()
        spread.add(reference)
    return spread.estimates(float(x.min()), float(x.max()), spec)


def measured(x, kind, spec):
    """With each sample's noise over its own energy."""
    low, high = activation_bounds(spec)
    scheme = SCHEMES["per_tensor", spec.symmetric]
    observer = OBSERVERS[kind](dtype=torch.quint8, qscheme=scheme, quant_min=low, quant_max=high)
    for rows in x.split(64):
        observer(rows)
    scale, zero = observer.calculate_qparams()
    noise = x - torch.fake_quantize_per_tensor_affine(x, float(scale), int(zero), low, high)
    return -10 * math.log10((noise.pow(2).sum(1) / x.pow(2).sum(1)).mean())


KINDS = (
    *("gaussian", "rectified", "shifted", "negative", "heavy tailed"),
    *("outlier", "huge outlier", "an outlier in each sample"),
)


def near(x, spec):
    real = Estimates(**{name: measured(x, name, spec) for name in OBSERVERS})
    return estimated(x, spec) == pytest.approx(real, abs=1.5)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_are_near_what_the_observers_come_to(kind, spec):
    assert near(values(kind), SPECS[spec])


@pytest.mark.parametrize("kind", ["gaussian", "rectified", "huge outlier"])
def test_a_sixteenth_of_the_elements_is_enough(kind):
    assert near(values(kind, size=1024).flip(1), ActivationSpec())  # the outlier is not among them


def test_samples_that_are_zero_or_not_finite_say_nothing():
    x = values("gaussian")
    spread = Spread()
    for rows in (x, torch.cat([x, torch.zeros(1, 64), torch.full((1, 64), math.nan)])):
        reference = Reference(rows)
        reference.learn()
        spread.add(reference)
    assert spread.samples == 1024
    assert spread.estimates(-4, 4, ActivationSpec()).min_max_db > 30


@pytest.mark.parametrize("extremes", [(0.0, 0.0), (-math.inf, 1.0), (math.nan, 1.0)])
def test_without_a_range_nothing_is_known(extremes):
    assert Spread().estimates(*extremes, ActivationSpec()) == Estimates()
    assert Spread().estimates(-1, 1, ActivationSpec()) == Estimates()


def test_an_estimate_takes_less_than_a_millisecond():
    spread = Spread()
    reference = Reference(values("gaussian"))
    reference.learn()
    spread.add(reference)
    times = []
    for _ in range(10):
        began = time.perf_counter()
        spread.estimates(-4, 4, ActivationSpec())
        times.append(time.perf_counter() - began)
    assert min(times) < 2e-3  # on a busy machine; 0.7 ms on a quiet one


def test_layers_with_static_activations_have_estimates_and_no_others():
    static = execute(Tiny(), Recipe().keeping_float("head")).layers
    known = {row.layer for row in static if None not in (row.min_max_db, row.percentile_db, row.histogram_db)}
    assert known == {"stem", "block.conv", "block.add", "pool"}
    assert all(20 < row.min_max_db < 60 for row in static if row.layer in known)
    assert all(row.min_max_db is None for row in execute(Tiny(), Recipe().with_mode("dynamic")).layers)
