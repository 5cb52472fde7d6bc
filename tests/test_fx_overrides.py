"""Overrides by function and by call, and modules that are kept whole, with FX."""

import pytest
import torch
from test_fx import Branching, Functions, Gated, dtypes, outcome, task_of
from tiny import Tiny, TinyNet
from torch import nn

from qtrack.engine import rebuild
from qtrack.engine.exporting import export_model
from qtrack.errors import BackendError, RecipeError
from qtrack.recipe import Float, Override, Recipe, Static, Training

STATIC = Recipe(engine="x86")


class Sums(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.inner = Inner()

    def forward(self, x):
        x = torch.relu(self.one(x))
        x = x + self.two(x)
        x += self.two(x)
        x = torch.add(x, self.two(x))
        return self.inner(x).flatten(1).mean(1, keepdim=True).expand(-1, 4)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x + self.conv(x)


def with_override(scheme="float", recipe=STATIC, **way):
    return recipe.having(overrides=(*recipe.overrides, Override(scheme=scheme, **way)))


def sums(recipe):
    return {
        name for name, dtype in dtypes(recipe, task_of(Sums)).items() if "add" in name and dtype == "int8"
    }


def test_a_function_is_left_in_float_wherever_it_is_called():
    assert sums(STATIC) == {"add", "add#2", "add#3", "inner.add"}
    assert sums(with_override(function="add")) == set()
    assert sums(with_override(function="torch.add")) == set()


@pytest.mark.parametrize("call", ["add", "add#2", "add#3", "inner.add"])
def test_one_call_goes_by_the_name_that_the_layer_table_gives_it(call):
    assert sums(with_override(call=call)) == {"add", "add#2", "add#3", "inner.add"} - {call}


def test_calls_are_counted_after_fusion_also_in_training():
    recipe = with_override(call="add#2", recipe=STATIC.having(training=Training(epochs=1)))
    assert sums(recipe) == {"add", "add#3", "inner.add"}


def test_the_last_match_wins_between_functions_and_modules():
    assert sums(with_override(call="inner.add", scheme=Static(), recipe=with_override(function="add"))) == {
        "inner.add"
    }
    assert sums(with_override(layer="inner", recipe=with_override(function="add", scheme=Static()))) == {
        "add",
        "add#2",
        "add#3",
    }


def test_a_function_may_have_another_scheme():
    narrow = {"mode": "static", "activation": {"bits": 4}}
    narrowed = with_override(call="add#2", scheme=narrow)
    table = {row.layer: row.own_sqnr_db for row in outcome(narrowed, task_of(Sums)).layers}
    usual = {row.layer: row.own_sqnr_db for row in outcome(STATIC, task_of(Sums)).layers}
    assert table["add#2"] < usual["add#2"] - 10
    assert table["add"] == usual["add"]


@pytest.mark.parametrize("function", ["cat", "sigmoid"])
def test_a_scheme_is_refused_where_torch_ao_gives_a_function_no_scale_of_its_own(function):
    narrow = {"mode": "static", "activation": {"bits": 4}}
    with pytest.raises(RecipeError, match=f"torch.ao gives {function} no scale of its own"):
        outcome(with_override(function=function, scheme=narrow), task_of(Functions))
    assert function not in dtypes(with_override(function=function), task_of(Functions))


def test_a_function_without_a_kernel_is_refused():
    class Divided(TinyNet):
        def forward(self, x):
            return torch.div(super().forward(x), 2.0)

    with pytest.raises(RecipeError, match=r"function 'div': fx has no static kernel for div \(div\)"):
        outcome(with_override(function="div", scheme=Static()), task_of(Divided))


def test_functions_may_be_quantized_where_the_default_is_float():
    recipe = with_override(function="add", scheme=Static(), recipe=STATIC.having(default=Float()))
    assert sums(recipe) == {"add", "add#2", "add#3", "inner.add"}


def test_what_matches_no_call_is_refused_with_those_there_are():
    with pytest.raises(
        RecipeError, match=r"overrides\[0\]: call 'add#9' matches no call; there are relu, add, add"
    ):
        outcome(with_override(call="add#9"), task_of(Sums))
    with pytest.raises(
        RecipeError, match="function 'mull' matches no call; there are relu, add, flatten, mean"
    ):
        outcome(with_override(function="mull"), task_of(Sums))


class Methods(TinyNet):
    def forward(self, x):
        x = self.relu(self.stem(x)).mean(1, keepdim=True)
        x = self.block(self.relu(self.stem(x)))
        return self.head(self.pool(x * x.mean(1, keepdim=True)).flatten(1))


def test_of_a_method_all_calls_go_together():
    rows = dtypes(STATIC, task_of(Methods))
    assert {"mean", "mean#2"} <= set(rows)
    assert not {"mean", "mean#2"} & set(dtypes(with_override(function="mean"), task_of(Methods)))
    with pytest.raises(RecipeError, match="cannot tell calls of the method 'mean' apart"):
        outcome(with_override(call="mean#2"), task_of(Methods))


def test_a_module_is_kept_whole():
    result = outcome(STATIC.having(non_traceable=("block",)))
    assert {row.layer: row.dtype for row in result.layers} == {
        "stem": "int8",
        "block": "float32",
        "pool": "int8",
        "head": "int8",
    }
    assert result.warnings == ("1 layer stays float, fx has no static kernel for: block (Residual)",)


def test_what_cannot_be_traced_may_be_named():
    assert dtypes(STATIC.having(non_traceable=("gate",)), task_of(Gated))["block.conv"] == "int8"


def test_weights_inside_of_what_is_kept_whole_are_stored_small_all_the_same():
    recipe = STATIC.with_mode("weight_only").having(non_traceable=("block",))
    assert dtypes(recipe)["block"] == "int8_weight"


def test_a_module_that_is_not_there_is_named():
    with pytest.raises(RecipeError, match=r"non_traceable\[0\]: the model has no module 'gone'"):
        outcome(STATIC.having(non_traceable=("gone",)))


def test_keeping_parts_whole_does_not_help_where_the_model_itself_cannot_be_traced():
    with pytest.raises(BackendError, match="the model's own forward"):
        outcome(STATIC.having(non_traceable=("block",)), task_of(Branching))


def test_a_model_with_functions_in_float_is_rebuilt():
    recipe = with_override(function="cat", recipe=with_override(function="sigmoid"))
    task = task_of(Functions)
    result = outcome(recipe, task)
    rebuilt = rebuild(task, result.recipe, result.model.state_dict())
    assert torch.equal(rebuilt(*result.example), result.model(*result.example))


@pytest.mark.parametrize("way", [{"function": "add"}, {"call": "block.add"}])
def test_a_model_with_functions_in_float_is_exported(way, alone):
    result = outcome(with_override(**way))
    assert export_model(Tiny(), result.recipe, result.model, alone / "m.pt2").equal_predictions == 1


def test_a_layer_without_weights_may_be_observed_otherwise():
    def make():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Dropout(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 4)
        )

    def scale(*overrides):
        return outcome(STATIC.having(overrides=overrides), task_of(make)).qparams["2.scale"]

    assert scale(Override(layer="2", scheme=Static().having(activation={"bits": 4}))) > 10 * scale()
