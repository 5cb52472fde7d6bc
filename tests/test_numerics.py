"""The numbers of the layer comparison: by hand, by law, and against a plain computation."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny
from torch import nn

from qtrack.backends import load_backend
from qtrack.numerics import ErrorSums, Reference, compare, sqnr_db
from qtrack.numerics.sketch import Sketch
from qtrack.recipe import Recipe

STATIC = Recipe(engine="x86")


def test_sqnr_by_hand():
    reference, actual = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert sqnr_db(reference, actual) == pytest.approx(20.0)


def test_measures_by_hand():
    sums = ErrorSums()
    sums.add(Reference(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 2.0]))
    assert sums.nmse == pytest.approx(4 / 25)
    assert sums.cosine == pytest.approx(17 / (5 * math.sqrt(13)))
    assert sums.max_abs_error == 2.0


def test_equal_tensors_have_no_finite_sqnr():
    x = torch.randn(10)
    sums = ErrorSums()
    sums.add(Reference(x), x)
    assert sums.sqnr_db is None
    assert sums.cosine == pytest.approx(1.0)
    assert sums.nmse == 0.0


def test_no_signal_and_no_number_are_null():
    assert sqnr_db(torch.zeros(4), torch.ones(4)) is None
    assert sqnr_db(torch.ones(4), torch.full((4,), math.nan)) is None
    assert sqnr_db(torch.zeros(0), torch.zeros(0)) is None


seeds = st.integers(0, 2**31)


def noisy(seed, count=257):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    return x, x + 0.1 * torch.randn(count, generator=generator)


@given(seeds, st.floats(1e-3, 1e3))
def test_sqnr_does_not_depend_on_scale(seed, k):
    x, y = noisy(seed)
    assert sqnr_db(k * x, k * y) == pytest.approx(sqnr_db(x, y), abs=1e-3)


@given(seeds, st.lists(st.integers(0, 257), max_size=5))
def test_streaming_equals_one_shot_for_any_split(seed, cuts):
    x, y = noisy(seed)
    whole, parts = ErrorSums(), ErrorSums()
    whole.add(Reference(x), y)
    bounds = [0, *sorted(cuts), 257]
    for low, high in itertools.pairwise(bounds):
        parts.add(Reference(x[low:high]), y[low:high])
    assert parts.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-4)
    assert parts.cosine == pytest.approx(whole.cosine, abs=1e-6)
    assert parts.max_abs_error == whole.max_abs_error


@settings(max_examples=20)
@given(seeds)
def test_order_of_samples_does_not_matter(seed):
    x, y = noisy(seed)
    order = torch.randperm(257, generator=torch.Generator().manual_seed(seed))
    assert sqnr_db(x[order], y[order]) == pytest.approx(sqnr_db(x, y), abs=1e-4)


@pytest.fixture(scope="module")
def quantized():
    torch.set_num_threads(1)
    task, backend = Tiny(), load_backend("fx")
    example = task.inputs(task.calibration()[0])
    prepared = backend.prepare(task.model(), STATIC, example)
    with torch.no_grad():
        for batch in task.calibration():
            prepared.model(*task.inputs(batch))
    return backend.convert(prepared, example)


def inputs():
    return [(batch[0],) for batch in Tiny().calibration()]


def test_accumulated_error_equals_a_plain_computation(quantized):
    rows = {row.layer: row for row in compare(quantized.pair, inputs()).rows}
    x = torch.cat([batch for (batch,) in inputs()])
    model, kernels = Tiny().model(), quantized.model
    with torch.no_grad():
        stem = model.relu(model.stem(x))
        scale, zero_point = kernels.stem_input_scale_0, kernels.stem_input_zero_point_0
        actual = kernels.stem(torch.quantize_per_tensor(x, scale, zero_point, torch.quint8)).dequantize()
        assert rows["stem"].sqnr_db == pytest.approx(sqnr_db(stem, actual), abs=0.001)
        assert rows["head"].sqnr_db == pytest.approx(sqnr_db(model(x), kernels(x)), abs=0.001)


def test_own_share_equals_quantizing_that_layer_on_the_float_input(quantized):
    rows = {row.layer: row for row in compare(quantized.pair, inputs()).rows}
    x = torch.cat([batch for (batch,) in inputs()])
    model, kernels = Tiny().model(), quantized.model
    with torch.no_grad():
        before = model.relu(model.stem(x))
        after = model.block.relu(model.block.bn(model.block.conv(before)))
        fed = torch.quantize_per_tensor(before, kernels.stem.scale, kernels.stem.zero_point, torch.quint8)
        alone = kernels.block.conv(fed).dequantize()
    assert rows["block.conv"].own_sqnr_db == pytest.approx(sqnr_db(after, alone), abs=0.001)
    assert rows["block.conv"].own_sqnr_db > rows["block.conv"].sqnr_db


def test_the_first_layer_has_no_error_but_its_own(quantized):
    first = compare(quantized.pair, inputs()).rows[0]
    assert first.own_sqnr_db == first.sqnr_db


def test_batches_of_any_size_give_the_same_table(quantized):
    x = torch.cat([batch for (batch,) in inputs()])
    whole, parts = compare(quantized.pair, [(x,)]), compare(quantized.pair, [(part,) for part in x.split(7)])
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=1e-3)
        assert one.own_sqnr_db == pytest.approx(other.own_sqnr_db, abs=1e-3)
        assert (one.bad_samples, one.saturation) == (other.bad_samples, other.saturation)
    assert whole.samples == parts.samples == 64


def test_weights_are_compared_after_fusion(quantized):
    row = next(row for row in compare(quantized.pair, inputs()).rows if row.layer == "block.conv")
    model = Tiny().model()
    fused = nn.utils.fusion.fuse_conv_bn_eval(model.block.conv, model.block.bn)
    assert row.weight_sqnr_db == pytest.approx(
        sqnr_db(fused.weight.detach(), quantized.model.block.conv.weight().dequantize()), abs=1e-3
    )


def test_macs_and_parameters_are_the_float_layers(quantized):
    rows = {row.layer: row for row in compare(quantized.pair, inputs()).rows}
    assert (rows["stem"].params, rows["stem"].macs) == (80, 8 * 36 * 9)
    assert (rows["head"].params, rows["head"].macs) == (292, 72 * 4)
    assert (rows["block.add"].params, rows["block.add"].macs) == (0, None)


def test_layers_come_in_execution_order(quantized):
    rows = compare(quantized.pair, inputs()).rows
    assert [row.layer for row in rows] == ["stem", "block.conv", "block.add", "pool", "head"]
    assert [row.index for row in rows] == sorted(row.index for row in rows)


def test_nan_in_a_layer_is_a_finding(quantized):
    batch = torch.cat([b for (b,) in inputs()])
    batch[5, 0, 0, 0] = math.nan
    compared = compare(quantized.pair, [(batch,)])
    assert "stem" in compared.nonfinite
    assert compared.rows[0].nonfinite_samples == 1
    clean = compare(quantized.pair, [(torch.cat([batch[:5], batch[6:]]),)])
    assert compared.rows[0].sqnr_db == pytest.approx(clean.rows[0].sqnr_db, abs=1e-3)
    assert np.flatnonzero(~np.isfinite(compared.sample_sqnr_db)).tolist() == [5]


def test_samples_with_large_error_are_told_apart(quantized):
    batch = torch.cat([b for (b,) in inputs()])
    batch[:16] *= 50  # far outside of what calibration saw
    row = compare(quantized.pair, [(batch,)]).rows[0]
    assert row.bad_samples == 0.25
    assert row.saturation > 0.1
    assert row.range_variation > 1


def test_a_sketch_finds_quantiles_and_zeros():
    sketch = Sketch()
    sketch.add(torch.tensor([[0.0, 0.0, -1.0, 2.0, math.inf, math.nan, -4.0, 4.0]]))
    assert sketch.zeros == 0.25
    assert sketch.magnitude(0.5) == pytest.approx(1.0, rel=0.125)
    assert sketch.magnitude(1.0) == pytest.approx(4.0, rel=0.13)
    counts, edges = sketch.histogram()
    assert counts.sum() == 6
    assert edges[0] <= -4.0
    assert edges[-1] > 4.0
    assert np.isfinite(edges).all()


def test_an_empty_sketch_knows_nothing():
    assert Sketch().zeros is None
    assert Sketch().magnitude(0.5) is None
    assert len(Sketch().histogram()[0]) == 0


@settings(max_examples=30)
@given(seeds)
def test_a_sketchs_quantile_is_within_an_eighth_of_an_octave(seed):
    x, _ = noisy(seed, 4096)
    sketch = Sketch()
    sketch.add(x.reshape(1, -1))
    exact = float(x.abs().quantile(0.99))
    assert sketch.magnitude(0.99) == pytest.approx(exact, rel=0.15)
