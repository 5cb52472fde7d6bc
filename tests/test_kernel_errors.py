"""Kernels held against their reference on equal integers."""

import pytest
import torch
from test_legs import prepared, static
from tiny import TinyNet
from torch import nn
from torch.ao.quantization import DeQuantStub, QuantStub

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
        if not found.is_quantized:
            return found
        integers = (found.int_repr().int() + steps).clamp(0, 255).to(torch.uint8)
        return torch._make_per_tensor_quantized_tensor(integers, found.q_scale(), found.q_zero_point())

    kernel.forward = wrong


def errors(name, change=lambda model: None, engine=None, make=None):
    backend, found, example = prepared(name, static(name), make)
    with using_engine(engine):
        quantized = backend.convert(found, example)
        change(quantized.model)
        pair = emulated_pair(backend.reference(found), quantized.pair)
        return {error.layer: error for error in kernel_errors(pair, [example])}


@pytest.mark.parametrize("name", BACKENDS)
def test_torchs_own_kernels_stay_within_rounding(name):
    found = errors(name)
    assert {"stem", "block.conv", "head"} <= set(found)
    assert not any(error.differs for error in found.values())


def test_a_kernel_that_is_off_is_named_with_its_steps_and_no_other_layer():
    found = errors("fx", lambda model: off_by(9, model.stem))
    assert [layer for layer, error in found.items() if error.differs] == ["stem"]
    assert found["stem"].largest == 9
    assert found["stem"].differing > 0.4  # the others stand at the end of the range


class Pooled(nn.Module):
    """One chain of layers between stubs, which fx takes for what they are in float: nothing."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.relu, self.pool = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 4, 4)

    def forward(self, x):
        return self.dequant(self.head(self.pool(self.relu(self.conv(self.quant(x)))).flatten(1)))


@pytest.mark.parametrize("name", ["fx", "eager"])
def test_layers_that_move_integers_must_be_equal_bit_for_bit(name):
    found = errors(name, make=Pooled)
    assert (found["pool"].exact, found["pool"].differs) == (True, False)
    broken = errors(name, lambda model: off_by(1, model.pool), make=Pooled)
    assert broken["pool"].differs
    assert broken["pool"].largest == 1


class Shared(TinyNet):
    """One activation for three layers: its kernel has one scale, its reference has one for each call."""

    def __init__(self):
        super().__init__()
        self.relu = self.block.relu = nn.Hardswish()

    def forward(self, x):
        return super().forward(self.relu(self.relu(x)))


def test_kernels_are_not_blamed_for_the_grid_of_what_they_are_fed():
    assert not any(error.differs for error in errors("fx", make=Shared).values())


def test_a_float_layer_has_no_kernel_to_look_at():
    backend, found, example = prepared("fx", static("fx").keeping_float("head"))
    quantized = backend.convert(found, example)
    pair = emulated_pair(backend.reference(found), quantized.pair)
    assert "head" not in {error.layer for error in kernel_errors(pair, [example])}
    assert isinstance(pair, Pair)
