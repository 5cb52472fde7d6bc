"""The pt2e backend: a recipe's schemes in an exported graph, under the float model's names."""

import copy

import pytest
import torch
from tiny import Tiny
from torch import nn

from qtrack.backends import load_backend
from qtrack.backends.export import exported
from qtrack.backends.pt2e_graph import Exported
from qtrack.engine import execute, rebuild
from qtrack.engine.exporting import export_model
from qtrack.errors import BackendError, RecipeError
from qtrack.numerics import sqnr_db
from qtrack.recipe import Float, Override, Recipe, Training

STATIC = Recipe(backend="pt2e")
TRAINED = STATIC.having(training=Training(epochs=1))


def outcome(recipe):
    return execute(Tiny(), recipe)


def dtypes(result):
    return {row.layer: row.dtype for row in result.layers}


def test_layers_and_functions_are_quantized_under_the_float_models_names():
    names = ("stem", "block.conv", "block.add", "pool", "head")
    assert dtypes(outcome(STATIC)) == dict.fromkeys(names, "int8")


def test_weights_have_the_same_scales_as_with_fx():
    recipe = STATIC.with_weights(granularity="per_channel")
    ours, theirs = outcome(recipe).qparams, outcome(recipe.having(backend="fx")).qparams
    for layer in ("stem", "block.conv", "head"):
        assert ours[f"{layer}.weight.scale"] == pytest.approx(theirs[f"{layer}.weight.scale"], rel=1e-6)


def test_a_layer_kept_float_keeps_its_weights_beside_batchnorm():
    result = outcome(STATIC.keeping_float("block.conv"))
    assert result.float_layers == ("block.conv",)
    weight = result.model.program.get_parameter("block.conv.weight")
    assert torch.equal(weight, Tiny().model().block.conv.weight)


def test_a_function_is_left_in_float_where_an_override_names_its_call():
    found = dtypes(outcome(STATIC.having(overrides=(Override(call="block.add", scheme=Float()),))))
    assert "block.add" not in found
    assert found["block.conv"] == "int8"


def test_an_override_that_names_no_call_says_which_there_are():
    recipe = STATIC.having(overrides=(Override(function="mul", scheme=Float()),))
    with pytest.raises(RecipeError, match=r"matches no call; there are add$"):
        outcome(recipe)


def test_weights_alone_may_be_quantized():
    assert set(dtypes(outcome(STATIC.with_mode("weight_only"))).values()) == {"int8_weight"}


@pytest.mark.parametrize(
    "recipe", [STATIC, pytest.param(TRAINED, marks=pytest.mark.slow)], ids=["calibrated", "trained"]
)
def test_recorded_parameters_give_the_same_model_bit_for_bit(recipe):
    result = outcome(recipe)
    again = rebuild(Tiny(), result.recipe, result.model.state_dict())
    assert torch.equal(again(*result.example), result.model(*result.example))


def test_any_batch_size_runs():
    model = outcome(STATIC).model
    assert [len(model(torch.randn(size, 1, 6, 6))) for size in (1, 3, 40)] == [1, 3, 40]


def test_a_model_is_written_as_it_is_and_read_back_bit_for_bit(tmp_path):
    result = execute(Tiny(), STATIC, thorough=False)
    assert export_model(Tiny(), result.recipe, result.model, tmp_path / "m.pt2").bit_identical
    loaded = torch.export.load(tmp_path / "m.pt2").module()
    images = torch.randn(5, 1, 6, 6)
    assert torch.equal(loaded(images), result.model(images))


class OneSize(torch.nn.Module):
    """Takes its batch size for a constant."""

    def forward(self, x):
        return x.reshape(16, -1)


def test_a_model_for_one_batch_size_alone_is_refused():
    with pytest.raises(BackendError, match="torch does not export the model"):
        exported(OneSize(), (torch.randn(16, 1, 6, 6),))


def test_batch_norm_and_dropout_follow_the_mode_with_their_own_settings():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, eps=0.1, momentum=0.3), nn.Dropout(0.5)).train()
    images = torch.randn(8, 1, 6, 6)
    model = Exported(exported(net, (images,)).module(check_guards=False))
    with torch.no_grad():
        assert torch.allclose(model.eval()(images), net.eval()(images))
        torch.manual_seed(0)
        expected = net.train()(images)
        torch.manual_seed(0)
        assert torch.allclose(model.train()(images), expected)
    assert torch.allclose(model.program.get_buffer("1.running_var"), net[1].running_var)


@pytest.mark.slow
def test_frozen_batch_norm_keeps_its_statistics_while_the_rest_is_trained():
    result = outcome(TRAINED)
    assert result.recipe.training.freeze_bn_stats == 0
    loose = outcome(STATIC.having(training=Training(epochs=1, freeze_bn_stats=None)))
    assert result.digests["parameters"] != loose.digests["parameters"]


def test_trained_models_are_compared_with_the_trained_float_model():
    rows = {row.layer: row for row in outcome(TRAINED).layers}
    assert rows["block.conv"].own_sqnr_db > 25
    assert rows["block.conv"].weight_sqnr_db > 30


def test_the_same_input_twice_may_share_a_scale():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(1, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return torch.cat((x, x), 1).flatten(1)

    class Task(Tiny):
        def model(self):
            return Twice()

    rows = {row.layer: row.dtype for row in execute(Task(), STATIC).layers}
    assert rows == {"stem": "int8", "cat": "int8"}


def test_inputs_by_name_are_exported_by_name():
    class Named(Tiny):
        def inputs(self, batch):
            return {"x": batch[0]}

    assert dtypes(execute(Named(), STATIC)) == dtypes(outcome(STATIC))


class Between(nn.Module):
    """What stands between a convolution and BatchNorm is the user's own, and looks like torchao's."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.bn.running_mean.fill_(0.3)
        self.bn.running_var.fill_(2.0)
        self.head = nn.Linear(64, 4)

    def forward(self, x):
        left, right = self.bn(self.conv(x) / 4).chunk(2, 1)
        return self.head(torch.cat((left, right * 2), 1).flatten(1))


@pytest.mark.parametrize("recipe", [STATIC, TRAINED, STATIC.with_mode("weight_only")])
def test_a_division_before_batch_norm_is_not_taken_for_torchaos(recipe):
    torch.manual_seed(0)
    net = Between()

    class Task(Tiny):
        def model(self):
            return copy.deepcopy(net)

    if recipe.training:
        recipe = recipe.having(training=Training(epochs=1, lr=1e-6))
    result = execute(Task(), recipe)
    with torch.no_grad():
        assert sqnr_db(net.eval()(*result.example), result.model(*result.example)) > 25


class Attending(nn.Module):
    """torch's attention computes with the weight of a layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(36, 4)

    def forward(self, x):
        x = x.squeeze(1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].flatten(1))


def test_layers_inside_of_attention_have_their_own_names_and_overrides():
    class Task(Tiny):
        def model(self):
            torch.manual_seed(0)
            return Attending()

    result = execute(Task(), STATIC)
    assert dtypes(result) == dict.fromkeys(("attention", "attention.out_proj", "head"), "int8")
    assert result.float_layers == result.warnings == ()
    kept = execute(Task(), STATIC.keeping_float("attention.out_proj"))
    assert dtypes(kept)["attention.out_proj"] == "float32"
    assert kept.float_layers == ("attention.out_proj",)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(36, 4)

    def forward(self, x):
        return self.head(self.conv(torch.relu(self.conv(x))).flatten(1))


def test_a_layer_that_is_called_twice_has_its_weights_scale_once():
    class Task(Tiny):
        def model(self):
            torch.manual_seed(0)
            return Twice()

    result = execute(Task(), STATIC)
    assert dtypes(result) == dict.fromkeys(("conv", "conv#2", "head"), "int8")
    assert {"conv.weight.scale", "head.weight.scale"} <= result.qparams.keys()
    assert "conv#2.weight.scale" not in result.qparams


class Branching(nn.Module):
    def forward(self, x):
        return x.flatten(1) if x.mean() > 0 else x.flatten(1)[:, :4]


def test_a_model_that_cannot_be_exported_is_one_line_with_the_backend_that_takes_it(capfd):
    with pytest.raises(BackendError) as raised:
        load_backend("pt2e").prepare(Branching(), STATIC, (torch.randn(4, 1, 6, 6),))
    assert str(raised.value).startswith("torch does not export the model: ")
    assert str(raised.value).endswith("; backend eager takes any forward()")
    assert len(str(raised.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
