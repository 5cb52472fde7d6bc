"""The percentile observer keeps the share of values that it is asked to keep."""

import copy

import pytest
import torch
from tiny import Tiny, batches
from torch.ao import quantization
from torchao.quantization import pt2e

from qtrack.backends.observers import percentile_class
from qtrack.engine import execute
from qtrack.recipe import MovingAverage, Percentile, Recipe, Training, WeightSpec

LIBRARIES = {"torch.ao": quantization, "torchao": pt2e}
OUTLIER = 200.0


def observed(library, *tensors, quantile=0.9999, **options):
    kind = percentile_class(LIBRARIES[library].HistogramObserver)
    observer = kind(quantile=quantile, quant_min=0, quant_max=255, **options)
    for tensor in tensors:
        observer(tensor)
    return observer._non_linear_param_search()


def gaussian(count=100_000):
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("quantile", [0.99, 0.999, 1.0])
def test_half_of_the_rest_is_cut_off_on_either_side(library, quantile):
    x = gaussian()
    low, high = observed(library, x, quantile=quantile)
    tail = (1 - quantile) / 2
    width = float(x.max() - x.min()) / 2048
    assert float(low) == pytest.approx(torch.quantile(x, tail).item(), abs=1.01 * width)
    assert float(high) == pytest.approx(torch.quantile(x, 1 - tail).item(), abs=1.01 * width)


@pytest.mark.parametrize("library", LIBRARIES)
def test_nothing_is_cut_off_where_the_values_end(library):
    low, high = observed(library, gaussian().relu(), quantile=0.99)
    assert float(low) == 0
    assert 2 < float(high) < 3


@pytest.mark.parametrize("library", LIBRARIES)
def test_one_outlier_among_many_does_not_count(library):
    x = torch.cat([gaussian(), torch.tensor([OUTLIER])])
    _, high = observed(library, *x.split(10_000), bins=16384)
    assert float(high) < 5


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_values_that_are_all_the_same_are_a_range(library, value):
    low, high = observed(library, torch.full((10,), value), quantile=0.5)
    assert float(low) == float(high) == value


class Spiked(Tiny):
    """One calibration sample is far outside of all others."""

    def calibration(self):
        found = batches(64, 2)
        found[1] = (found[1][0].clone(), found[1][1])
        found[1][0][3, 0, 2, 2] = 10 * OUTLIER
        return found


@pytest.mark.parametrize(
    "backend",
    ["fx", pytest.param("eager", marks=pytest.mark.slow), pytest.param("pt2e", marks=pytest.mark.slow)],
)
def test_a_recipe_with_percentiles_ignores_an_outlier(backend):
    spec = Percentile(quantile=0.995, bins=8192)
    recipe = Recipe(backend=backend)
    done = execute(Spiked(), recipe.with_activations(observer=spec))
    spoilt = execute(Spiked(), recipe.with_activations(observer="min_max"))
    assert done.value > spoilt.value + 0.1


def test_the_quantile_and_the_bins_take_effect():
    digests = {
        execute(Tiny(), Recipe().with_activations(observer=observer), thorough=False).digests["parameters"]
        for observer in (Percentile(), Percentile(quantile=0.9), Percentile(bins=32))
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    "backend",
    ["fx", pytest.param("eager", marks=pytest.mark.slow), pytest.param("pt2e", marks=pytest.mark.slow)],
)
def test_it_works_inside_of_fake_quantization_and_on_weights(backend):
    recipe = Recipe(backend=backend, training=Training(epochs=1)).with_activations(observer=Percentile())
    assert execute(Tiny(), recipe.with_weights(observer=MovingAverage()), thorough=False).value > 0.7
    weights = Recipe(backend=backend).with_weights(observer=Percentile(quantile=0.98))
    assert execute(Tiny(), weights, thorough=False).value > 0.5


def test_a_copy_observes_on_its_own():
    observer = percentile_class(quantization.HistogramObserver)(quantile=0.5)
    copied = copy.deepcopy(observer)
    observer(torch.ones(3))
    assert copied.histogram.sum() == 0


def test_it_has_no_per_channel_form():
    with pytest.raises(ValueError, match="percentile has no per_channel form"):
        WeightSpec(granularity="per_channel", observer="percentile")
