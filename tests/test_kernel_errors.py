"""Kernels held against their reference on equal integers."""

import pytest
import torch
from test_legs import prepared, static

from qtrack.backends import emulated_pair
from qtrack.backends.engines import using_engine
from qtrack.numerics import Pair
from qtrack.numerics.kernels import kernel_errors

BACKENDS = ("fx", "eager", "pt2e")


def off_by(steps, kernel):
    """A kernel that gives so many steps more than it should."""
    right = kernel.forward

    def wrong(x):
        found = right(x)
        integers = (found.int_repr().int() + steps).clamp(0, 255).to(torch.uint8)
        return torch._make_per_tensor_quantized_tensor(integers, found.q_scale(), found.q_zero_point())

    kernel.forward = wrong


def errors(name, change=lambda model: None, engine=None):
    backend, found, example = prepared(name, static(name))
    with using_engine(engine):
        quantized = backend.convert(found, example)
        change(quantized.model)
        pair = emulated_pair(backend.reference(found), quantized.pair)
        return {error.layer: error for error in kernel_errors(pair, [example])}


@pytest.mark.parametrize("name", BACKENDS)
def test_torchs_own_kernels_stay_within_rounding(name):
    found = errors(name)
    assert {"stem", "block.conv", "head"} <= set(found)
    assert not any(error.exceeds_rounding for error in found.values())


def test_a_kernel_that_is_off_is_named_with_its_steps_and_no_other_layer():
    found = errors("fx", lambda model: off_by(3, model.stem))
    assert [layer for layer, error in found.items() if error.exceeds_rounding] == ["stem"]
    assert found["stem"].largest == 3
    assert found["stem"].differing > 0.4  # the others stand at the end of the range


def test_a_float_layer_has_no_kernel_to_look_at():
    backend, found, example = prepared("fx", static("fx").keeping_float("head"))
    quantized = backend.convert(found, example)
    pair = emulated_pair(backend.reference(found), quantized.pair)
    assert "head" not in {error.layer for error in kernel_errors(pair, [example])}
    assert isinstance(pair, Pair)
