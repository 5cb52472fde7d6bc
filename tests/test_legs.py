"""The reference form of a quantized model, whole and one side at a time, on every backend that has it."""

import math

import pytest
import torch
from tiny import Tiny

from qtrack.backends import load_backend
from qtrack.backends.observers import Remembers
from qtrack.errors import BackendError
from qtrack.numerics import sqnr_db
from qtrack.recipe import Recipe, Training

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
BACKENDS = ("fx", "eager", "pt2e")


def static(name, **more):
    return Recipe(backend=name, engine=None if name == "pt2e" else "x86", **more)


def prepared(name, recipe, make=None):
    task, backend = Tiny(), load_backend(name)
    example = task.inputs(task.calibration()[0])
    found = backend.prepare(make().eval() if make else task.model(), recipe, example)
    backend.fake_quantize(found, False)
    found.model.eval()
    with torch.no_grad():
        for batch in task.calibration():
            found.model(*task.inputs(batch))
    return backend, found, example


def outputs(name, recipe=None):
    """The float model's outputs, the kernels', and each leg's."""
    recipe = recipe or static(name)
    backend, found, example = prepared(name, recipe)
    with torch.no_grad():
        legs = {
            "both": backend.reference(found),
            "weights": backend.reference(found, ["weights"]),
            "activations": backend.reference(found, ["activations"]),
            "none": backend.reference(found, []),
            "kernels": backend.convert(found, example).model,
            "float": Tiny().model(),
        }
        return {leg: model(*example) for leg, model in legs.items()}


@pytest.mark.parametrize("training", [None, Training()])
@pytest.mark.parametrize("name", BACKENDS)
def test_without_both_sides_it_is_the_float_model(name, training):
    found = outputs(name, static(name, training=training))
    assert torch.allclose(found["none"], found["float"], atol=1e-4)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_noise_of_both_sides_adds_up_to_that_of_the_whole(name):
    found = outputs(name)
    noise = {leg: float((value - found["float"]).pow(2).sum()) for leg, value in found.items()}
    assert 0.3 < noise["both"] / (noise["weights"] + noise["activations"]) < 3
    assert noise["weights"] > 0
    assert noise["activations"] > 0


@pytest.mark.parametrize("name", BACKENDS)
def test_coarse_weights_show_on_the_side_of_weights_alone(name):
    found = outputs(name, static(name).with_weights(bits=3))
    assert sqnr_db(found["float"], found["weights"]) + 10 < sqnr_db(found["float"], found["activations"])


@pytest.mark.parametrize("name", BACKENDS)
def test_the_whole_is_close_to_the_kernels(name):
    found = outputs(name)
    assert (sqnr_db(found["kernels"], found["both"]) or math.inf) > 30


def test_torchao_has_weights_alone():
    recipe = Recipe(backend="torchao").with_mode("weight_only").with_weights(granularity="per_channel")
    backend, found, example = prepared("torchao", recipe)
    with torch.no_grad():
        alone = backend.reference(found, ["weights"])(*example)
    assert torch.allclose(alone, backend.convert(found, example).model(*example), atol=1e-4)
    with pytest.raises(BackendError, match="no form alone"):
        backend.reference(found, ["activations"])


@pytest.mark.parametrize("name", BACKENDS)
def test_a_range_is_searched_for_once_until_the_observer_sees_more(name):
    backend, found, example = prepared(name, static(name))
    backend.convert(found, example)
    observers = [module for module in found.model.modules() if isinstance(module, Remembers)]
    before = [observer.found for observer in observers]
    backend.reference(found)
    assert observers
    assert all(observer.found is one for observer, one in zip(observers, before, strict=True))
    with torch.no_grad():
        found.model(*(3 * one for one in example))
    backend.convert(found, example)
    assert not any(observer.found is one for observer, one in zip(observers, before, strict=True))
