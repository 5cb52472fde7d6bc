"""What every backend keeps to: the same facts, asked of each in turn, as far as its table says it can."""

import pytest
import torch
from tiny import Tiny, TinyNet
from torch import nn

from qtrack import execute
from qtrack.backends import load_backend
from qtrack.backends.capabilities import CAPABILITIES, missing
from qtrack.engine import settled
from qtrack.errors import BackendError, QtrackError
from qtrack.ledger import models
from qtrack.recipe import Histogram, MinMax, Recipe, Training, WeightSpec

LAYERS = ("stem", "block.conv", "head")
PER_CHANNEL = WeightSpec(granularity="per_channel")


def backends(*values, feature="mode"):
    """The backends that have all of these values of a feature; the rest of them are not asked."""
    able = [name for name, table in CAPABILITIES.items() if set(values) <= set(table.get(feature, ()))]
    return pytest.mark.parametrize("backend", able, indirect=True)


@pytest.fixture
def backend(request):
    if reason := missing(request.param):
        pytest.skip(f"{request.param}: {reason}")
    return request.param


def recipe(backend, mode=None, **fields):
    """Static where the backend has that, else weight-only, with scales per channel."""
    mode = mode or ("static" if "static" in CAPABILITIES[backend]["mode"] else "weight_only")
    return settled(Recipe(backend=backend, default={"mode": mode, "weight": PER_CHANNEL}, **fields))


def done(recipe, task=None):
    return execute(task or Tiny(), recipe)


def dtypes(outcome):
    return {row.layer: row.dtype for row in outcome.layers if row.layer in LAYERS}


def weights_of(outcome, layer):
    """Scales of a layer's weights, from the numbers on record."""
    return torch.as_tensor(outcome.qparams[f"{layer}.weight.scale"])


every = backends()


@every
def test_layers_have_the_names_of_the_float_model(backend):
    outcome = done(recipe(backend))
    names = {name for name, _ in Tiny().model().named_modules()}
    assert set(dtypes(outcome)) <= names
    assert "head" in dtypes(outcome)


@every
@pytest.mark.parametrize("layer", ["head"])
def test_an_override_leaves_exactly_that_layer_in_float_with_its_own_weights(backend, layer):
    outcome = done(recipe(backend).keeping_float(layer))
    plain = done(recipe(backend))
    kept = dict(dtypes(plain) | {layer: "float32"})
    assert dtypes(outcome) == kept
    assert layer in outcome.float_layers
    held = outcome.model.state_dict().values()
    assert any(torch.equal(value, Tiny().model().head.weight) for value in held if value.dim() == 2)


@every
def test_the_last_override_that_matches_wins(backend):
    back = recipe(backend).keeping_float("head")
    back = back.having(overrides=(*back.overrides, {"type": "Linear", "scheme": back.default}))
    assert dtypes(done(back)) == dtypes(done(recipe(backend)))


@every
def test_scales_per_channel_count_the_channels(backend):
    outcome = done(recipe(backend))
    assert weights_of(outcome, "head").numel() == Tiny().model().head.out_features


@backends("static")
def test_scales_per_tensor_are_one(backend):
    outcome = done(recipe(backend).with_weights(granularity="per_tensor"))
    assert weights_of(outcome, "head").numel() == 1


@backends("histogram", feature="static.activation.observer")
def test_the_observer_and_its_arguments_change_the_scales(backend):
    digests = {
        done(recipe(backend).with_activations(observer=observer)).digests["parameters"]
        for observer in (MinMax(), Histogram(), Histogram(bins=64))
    }
    assert len(digests) == 3


@backends(True, feature="training")
def test_training_lowers_the_loss(backend):
    task = Tiny()
    coarse = recipe(backend).with_weights(bits=2).with_activations(bits=3)
    before = done(coarse, task)
    after = done(coarse.having(training=Training(epochs=3)), task)
    assert loss(after, task) < loss(before, task)


def loss(outcome, task):
    with torch.no_grad():
        return sum(
            float(task.loss(outcome.model(images), (images, labels))) for images, labels in task.validation()
        )


@backends("dynamic")
def test_dynamic_has_no_activation_scales(backend):
    outcome = done(recipe(backend, "dynamic"))
    assert dtypes(outcome)["head"] == "int8_dynamic"
    assert {name for name in outcome.qparams if name.startswith("head.")} == {
        "head.weight.scale",
        "head.weight.zero_point",
    }


@backends("static")
def test_weights_alone_are_stored_small_in_every_layer(backend):
    assert dtypes(done(recipe(backend, "weight_only"))) == dict.fromkeys(LAYERS, "int8_weight")


@backends("float16")
def test_weights_are_stored_in_half_in_every_layer(backend):
    outcome = done(settled(Recipe(backend=backend, default="float16")))
    assert dtypes(outcome) == dict.fromkeys(LAYERS, "float16_weight")


@backends("dynamic")
def test_what_stays_float_is_said(backend):
    outcome = done(recipe(backend, "dynamic"))
    assert outcome.float_layers == ("stem", "block.conv")
    said = f"2 layers stay float, {backend} has no dynamic kernel for: stem (Conv2d), block.conv (Conv2d)"
    assert outcome.warnings == (said,)


@every
def test_a_converted_model_is_saved_and_read_back_bit_for_bit(backend, tmp_path):
    task = Tiny()
    outcome = done(recipe(backend), task)
    assert models.save(task, outcome, tmp_path / "model") == "saved"
    loaded = models.load(task, tmp_path / "model")
    (images,) = outcome.example
    assert torch.equal(loaded(images), outcome.model(images))


@every
def test_the_same_seed_gives_the_same_digests(backend):
    first, second = done(recipe(backend, seed=3)), done(recipe(backend, seed=3))
    assert first.digests == second.digests


@pytest.mark.slow
@backends(True, feature="training")
def test_the_same_seed_trains_the_same_model(backend):
    trained = recipe(backend, training=Training(epochs=1))
    assert done(trained).digests == done(trained).digests


@every
def test_the_float_model_is_left_as_it_was(backend):
    task, model = Tiny(), Tiny().model().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    example = task.inputs(next(iter(task.calibration())))
    door = load_backend(backend)
    prepared = door.prepare(model, recipe(backend), example)
    prepared.model(*example)
    door.convert(prepared, example)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Strange(nn.Module):
    """Raises where it is run with anything but its own kind of numbers."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet()

    def forward(self, x):
        if float(x.abs().sum()) > 0 and getattr(self, "broken", True):
            raise ZeroDivisionError("the model's own fault")
        return self.net(x)


@every
def test_foreign_exceptions_come_out_as_ours(backend):
    class Faulty(Tiny):
        def model(self):
            return Strange()

    with pytest.raises(QtrackError) as raised:
        done(recipe(backend), Faulty())
    assert isinstance(raised.value, BackendError | QtrackError)
    assert len(str(raised.value).splitlines()) == 1


@every
def test_layers_are_compared_with_errors_of_their_own(backend):
    rows = {row.layer: row for row in done(recipe(backend)).layers}
    assert rows["head"].own_sqnr_db is not None
    assert 10 < rows["head"].own_sqnr_db < 80
    assert rows["head"].weight_sqnr_db is not None


@every
def test_it_is_smaller_than_the_float_model(backend):
    assert done(recipe(backend)).size_bytes < done(Recipe(default="float")).size_bytes
