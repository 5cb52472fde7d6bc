"""Converted exports on integer kernels: torchao's lowering and inductor give what the graph says."""

from functools import cache

import pytest
import torch
from tiny import Tiny

from qtrack.backends.pt2e_lowering import compiled, lowered
from qtrack.engine import execute
from qtrack.errors import BackendError
from qtrack.recipe import Recipe

pytestmark = pytest.mark.slow
BOUND = 0.02
"""Of the largest output: kernels sum in another order, which moves some roundings by a step."""


@cache
def converted(granularity):
    return execute(Tiny(), Recipe(backend="pt2e").with_weights(granularity=granularity)).model


def batch():
    return next(iter(Tiny().validation()))[0]


def gap(program, model):
    """The largest difference to the converted model's outputs, as a share of the largest of them."""
    with torch.no_grad():
        expected = model(batch())
        return float((program(batch()) - expected).abs().max() / expected.abs().max())


def test_torchaos_lowering_computes_the_same():
    model = converted("per_tensor")
    assert gap(lowered(model, (batch(),)), model) <= BOUND


def test_torchaos_lowering_takes_no_view_of_channels_last_outputs():
    with pytest.raises(BackendError, match="cannot be lowered: RuntimeError: view size is not compatible"):
        lowered(converted("per_channel"), (batch(),))


@pytest.mark.parametrize("freezing", [False, True])
def test_inductor_computes_the_same(freezing):
    model = converted("per_channel")
    assert gap(compiled(model, (batch(),), freezing=freezing), model) <= BOUND


def test_lowering_leaves_the_model_as_it_was():
    model = converted("per_tensor")
    before, code = list(model.state_dict()), model.program.code
    lowered(model, (batch(),))
    assert (list(model.state_dict()), model.program.code) == (before, code)


def test_lowering_fixes_the_batch_size():
    program = lowered(converted("per_tensor"), (batch(),))
    with pytest.raises(RuntimeError, match="to be equal to 16, but got 5"):
        program(batch()[:5])


def test_what_cannot_be_lowered_is_said_in_one_line():
    with pytest.raises(BackendError, match="the model cannot be lowered: "):
        lowered(converted("per_tensor"), (torch.zeros(4, 3, 6, 6),))
