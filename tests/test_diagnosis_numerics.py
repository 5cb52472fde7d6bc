"""What the diagnosis measures on single layers, against values worked out by hand."""

import numpy as np
import pytest
import torch
from test_kernel_errors import off_by
from test_legs import prepared, static
from torch import nn

from qtrack.backends.capabilities import check
from qtrack.diagnosis.channels import per_channel
from qtrack.diagnosis.inputs import outlying, spread_of
from qtrack.errors import RecipeError
from qtrack.numerics.extent import extents
from qtrack.numerics.rungs import rungs_of
from qtrack.numerics.saturation import saturating_pairs
from qtrack.numerics.shift import shifts
from qtrack.recipe import Recipe
from qtrack.stages import STAGES

FULL, REDUCED = 255.0, 127.0


@pytest.mark.parametrize(("value", "weight", "share"), [(FULL, 127, 1), (FULL, 64, 0), (REDUCED, 127, 0)])
def test_two_products_overflow_sixteen_bits_as_they_do_on_paper(value, weight, share):
    layer = nn.Linear(4, 3)  # 2 * 255 * 127 = 64770, 2 * 255 * 64 = 32640, 2 * 127 * 127 = 32258 < 32768
    assert saturating_pairs(layer, torch.full((2, 4), value), torch.full((3, 4), weight)) == share


def test_products_are_paired_across_channels_first():
    layer = nn.Conv2d(2, 1, 1)
    activations = torch.tensor([FULL, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 3, 3)
    assert saturating_pairs(layer, activations, torch.full((1, 2, 1, 1), 127)) == 0
    assert saturating_pairs(layer, activations.clone().fill_(FULL), torch.full((1, 2, 1, 1), 127)) == 1


def test_other_layers_have_no_pairs():
    assert saturating_pairs(nn.ReLU(), torch.ones(1), torch.ones(1)) is None


def test_an_error_that_is_the_same_everywhere_is_all_shift():
    backend, found, example = prepared("fx", static("fx").with_weights(granularity="per_channel"))
    quantized = backend.convert(found, example)
    before = shifts(quantized.pair, example)
    off_by(20, quantized.model.head)
    after = shifts(quantized.pair, example)
    assert after["head"] > 0.99 > before["head"]
    assert after["stem"] == before["stem"]


def test_a_linear_layer_has_four_rungs_each_better_than_the_last():
    backend, found, example = prepared("fx", static("fx").with_weights(granularity="per_channel"))
    quantized = backend.convert(found, example)
    rungs = {rung.dtype: rung for rung in rungs_of(quantized.pair, ["head"], example)}
    assert list(rungs) == ["int8", "int8_dynamic", "float16", "float32"]
    assert rungs["int8"].sqnr_db < rungs["int8_dynamic"].sqnr_db < rungs["float16"].sqnr_db
    assert rungs["float32"].sqnr_db is None
    assert all(rung.milliseconds > 0 for rung in rungs.values())


def test_a_layer_in_float_has_one_rung():
    backend, found, example = prepared("fx", static("fx").keeping_float("head"))
    quantized = backend.convert(found, example)
    assert [rung.dtype for rung in rungs_of(quantized.pair, ["head"], example)] == ["float32"]


def test_a_sample_is_an_outlier_where_it_costs_the_others_range():
    usual = np.random.default_rng(0).uniform(0.9, 1.0, (50, 6))
    images = torch.tensor(np.concatenate([usual, 1.5 * usual[:1], 8 * usual[:1]]), dtype=torch.float32)
    assert np.flatnonzero(outlying(spread_of([(images,)]))).tolist() == [51]


@pytest.mark.parametrize("backend", ["fx", "pt2e", "torchao"])
def test_dynamic_may_change_the_backend_along(backend):
    recipe = STAGES["dynamic"](Recipe(engine="x86").with_weights(bits=4), None, backend=backend)
    check(recipe)
    assert (recipe.backend, recipe.default.mode) == (backend, "dynamic")
    assert recipe.engine == ("x86" if backend == "fx" else None)


def test_keep_float_takes_modules_and_calls():
    recipe = STAGES["keep_float"](Recipe(), None, layers=["stem"], calls=["block.add"])
    assert [str(override) for override in recipe.overrides] == ["layer 'stem'", "call 'block.add'"]
    with pytest.raises(RecipeError, match="name layers, or calls"):
        STAGES["keep_float"](Recipe(), None)


def test_the_ranges_of_layers_are_those_over_all_batches():
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    found = extents(net, [(torch.tensor([[1.0], [-3.0]]),), (torch.tensor([[4.0]]),)])
    assert found == {"0": (-6.0, 8.0), "1": (0.0, 8.0)}


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_per_channel_are_judged_with_the_recipes_bits(bits):
    weight = torch.tensor([[1.0, -0.4], [100.0, -40.0]])
    found = per_channel(weight, weight.abs().amax(1), bits)
    assert torch.allclose(found[1], 100 * found[0])
    step = 1 / (2 ** (bits - 1) - 0.5)
    assert found[0, 1].item() == pytest.approx(-step * round(0.4 / step))
