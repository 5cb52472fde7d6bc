"""The eager backend: what a recipe names is what happens, whatever forward() does."""

import pytest
import torch
from test_fx import Branching, Encoder, Functions, Gated, Lookup, Recurrent, task_of
from tiny import Tiny, TinyNet
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import DeQuantStub, QuantStub, QuantWrapper

from qtrack.backends import load_backend
from qtrack.engine import execute, rebuild
from qtrack.errors import BackendError, RecipeError
from qtrack.recipe import Float, Override, Recipe, Static, Training, WeightSpec

STATIC = Recipe(backend="eager", engine="x86")


def outcome(recipe, task=None):
    return execute(task or Tiny(), recipe)


def dtypes(recipe, task=None):
    return {row.layer: row.dtype for row in outcome(recipe, task).layers}


def kernels(task, recipe=STATIC):
    """The converted model, by the names of its modules."""
    return dict(outcome(recipe, task).model.named_modules())


def stubs(task, recipe=STATIC):
    """Names of layers that take floats, and of those that give floats."""
    wrappers = {n: m for n, m in kernels(task, recipe).items() if isinstance(m, QuantWrapper)}
    takes = {name for name, m in wrappers.items() if not isinstance(m.quant, nn.Identity)}
    return takes, {name for name, m in wrappers.items() if not isinstance(m.dequant, nn.Identity)}


def test_layers_run_on_integers_under_the_float_models_names():
    assert dtypes(STATIC) == {"stem": "int8", "block.conv": "int8", "head": "int8"}


def test_dynamic_reaches_recurrent_layers():
    task = task_of(Recurrent, (6, 6))
    assert dtypes(STATIC.with_mode("dynamic"), task) == {"rnn": "int8_dynamic", "head": "int8_dynamic"}
    assert dtypes(STATIC, task) == {"rnn": "float32", "head": "int8"}


def test_dynamic_reaches_a_layer_that_an_activation_was_fused_to():
    class Net(nn.Sequential):
        def __init__(self):
            super().__init__(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))

    assert dtypes(STATIC.with_mode("dynamic"), task_of(Net)) == {"1": "int8_dynamic", "3": "int8_dynamic"}


def test_a_layer_kept_float_keeps_its_weights_exactly_also_beside_batchnorm():
    model = outcome(STATIC.keeping_float("block")).model
    assert torch.equal(model.block.conv.weight, Tiny().model().block.conv.weight)


def test_batchnorm_behind_a_layer_kept_float_stays_float_as_well():
    rows = dtypes(STATIC.keeping_float("block.conv"))
    assert rows == {"stem": "int8", "block.conv": "float32", "block.bn": "float32", "head": "int8"}


def test_overrides_may_quantize_what_the_default_leaves_float():
    recipe = STATIC.having(default=Float(), overrides=(Override(layer="head", scheme=Static()),))
    assert dtypes(recipe)["head"] == "int8"
    assert dtypes(recipe)["stem"] == "float32"


def test_modes_may_be_mixed():
    recipe = STATIC.having(
        overrides=(Override(layer="stem", scheme="float16"), Override(type="Linear", scheme="dynamic"))
    )
    assert dtypes(recipe) == {"stem": "float16_weight", "block.conv": "int8", "head": "int8_dynamic"}


def test_scales_go_by_the_float_models_names():
    found = outcome(STATIC.with_weights(granularity="per_channel")).qparams
    assert len(found["block.conv.weight.scale"]) == 8
    assert {"stem.quant.scale", "stem.scale", "head.zero_point"} <= set(found)
    assert not any("module" in name for name in found)


def test_what_an_override_names_exactly_is_done_or_refused():
    recipe = STATIC.having(default=Float(), overrides=(Override(layer="stem", scheme="dynamic"),))
    with pytest.raises(RecipeError, match=r"overrides\[0\]: eager has no dynamic kernel for stem \(Conv2d\)"):
        outcome(recipe)


def test_what_the_kernels_refuse_comes_out_in_one_line():
    recipe = STATIC.having(engine="onednn", default=Static(weight=WeightSpec(symmetric=False)))
    with pytest.raises(BackendError, match="ONEDNN only supports symmetric quantization of weight") as error:
        outcome(recipe)
    assert "\n" not in str(error.value)


TRAINED = STATIC.having(training=Training(epochs=2))


def test_training_lowers_the_loss_and_ends_on_integer_kernels():
    losses = []

    class Listening:
        def report(self, name, value, step):
            losses.append(value)

        def phase(self, name, samples):
            from qtrack.monitor import SILENT

            return SILENT.phase(name, samples)

    result = execute(Tiny(), TRAINED, monitor=Listening())
    assert losses[-1] < losses[0]
    assert {row.dtype for row in result.layers} == {"int8"}


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own, for quantized tensors
@pytest.mark.parametrize(
    "recipe",
    [*(STATIC.with_mode(mode) for mode in ("static", "dynamic", "weight_only", "float16", "float")), TRAINED],
    ids=lambda recipe: recipe.default.mode + (" trained" if recipe.training else ""),
)
def test_a_state_dict_loads_into_a_rebuilt_model_bit_for_bit(recipe, tmp_path):
    result = outcome(recipe)
    torch.save(result.model.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    rebuilt = rebuild(Tiny(), result.recipe, state)
    assert torch.equal(rebuilt(*result.example), result.model(*result.example))


def test_models_that_cannot_be_traced_are_no_trouble():
    assert dtypes(STATIC, task_of(Branching)) == {"stem": "int8", "block.conv": "int8", "head": "int8"}
    assert outcome(STATIC, task_of(Branching)).sqnr_db > 25


def test_fusion_is_found_in_the_parts_that_can_be_traced():
    fused = kernels(task_of(Branching))
    assert type(fused["block.conv.module"]).__name__ == "ConvReLU2d"
    assert type(fused["stem.module"]).__name__ == "Conv2d"  # in a forward() that nobody can look into


class Chain(nn.Sequential):
    def __init__(self):
        layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)
        super().__init__(*layers, nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def test_between_layers_that_feed_only_each_other_nothing_is_turned_to_float():
    assert stubs(task_of(Chain)) == ({"0"}, {"8"})


class Tapped(Chain):
    """Its layers are called one by one, and something else reads what passes between them."""

    def forward(self, x):
        seen = []
        for layer in self:
            x = layer(x)
            seen.append(x.mean())
        return x + 0 * sum(seen)


def test_where_anything_else_reads_it_the_stubs_stay():
    layers = {"0", "1", "4", "6", "8"}  # BatchNorm as well, which cannot be fused then
    assert stubs(task_of(Tapped)) == (layers, layers)


def test_layers_that_want_other_activations_do_not_share_them():
    narrow = Override(layer="4", scheme={"mode": "static", "activation": {"bits": 4}})
    takes, gives = stubs(task_of(Chain), STATIC.having(overrides=(narrow,)))
    assert takes == {"0", "4", "6"}
    assert gives == {"0", "4", "8"}


def test_shared_and_own_stubs_come_to_the_same():
    whole, apart = outcome(STATIC, task_of(Chain)), outcome(STATIC, task_of(Tapped))
    # A pool between two layers hands on the first one's scale, or is observed anew: one step apart.
    assert (whole.model(*whole.example) - apart.model(*whole.example)).abs().max() < 0.05


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.bn, self.relu = nn.BatchNorm2d(1), nn.ReLU()

    def forward(self, x):
        x = self.relu(self.bn(self.conv(x)) + self.bn(self.conv(self.relu(x))))
        return self.other(x).mean((2, 3))


def test_layers_that_are_called_twice_are_not_fused_and_stand_twice_in_the_table():
    rows = dtypes(STATIC, task_of(Twice))
    assert {name: rows[name] for name in rows if "conv" in name} == {"conv": "int8", "conv#2": "int8"}


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(36, 36)
        self.again = nn.Sequential(self.first, nn.ReLU())
        self.head = nn.Linear(36, 4)

    def forward(self, x):
        return self.head(self.again(torch.tanh(self.first(x.flatten(1)))))


@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_a_layer_under_two_names_is_quantized_under_both(mode):
    result = outcome(STATIC.with_mode(mode), task_of(Shared))
    rows = {row.layer: row.dtype for row in result.layers}
    assert set(rows) == {"first", "first#2", "head"}
    assert "float32" not in rows.values()
    assert result.sqnr_db > 25
    rebuilt = rebuild(task_of(Shared), result.recipe, result.model.state_dict())
    assert torch.equal(rebuilt(*result.example), result.model(*result.example))


def test_functions_stay_float_and_transposed_convolutions_do_not():
    rows = dtypes(STATIC.with_weights(granularity="per_channel"), task_of(Functions))
    assert rows == {"one": "int8", "two": "int8", "up": "int8", "head": "int8"}


def test_torchs_own_composed_layers_are_not_looked_into_and_said_to_stay_float():
    result = outcome(STATIC, task_of(Encoder, (6, 6)))
    assert result.float_layers == ("encoder",)
    assert result.warnings == (
        "1 layer stays float, eager has no static kernel for: encoder (TransformerEncoderLayer)",
    )
    rows = {row.layer: row.dtype for row in result.layers}
    assert rows == {"embed": "int8", "norm": "int8", "encoder": "float32", "head": "int8"}


def test_weights_inside_of_them_are_stored_small_all_the_same():
    result = outcome(STATIC.with_mode("weight_only"), task_of(Encoder, (6, 6)))
    assert {row.layer: row.dtype for row in result.layers}["encoder"] == "int8_weight"
    assert result.float_layers == ()


def test_embeddings_stay_float_unless_weights_alone_are_quantized():
    task = task_of(Lookup)
    assert dtypes(STATIC, task)["table"] == "float32"
    assert dtypes(STATIC.with_mode("weight_only"), task)["table"] == "int8_weight"


class Reading(TinyNet):
    """Its forward() takes a layer apart."""

    def forward(self, x):
        x = nn.functional.conv2d(x, self.stem.weight, self.stem.bias, padding=1)
        return self.head(self.pool(self.block(self.relu(x))).flatten(1))


def test_a_model_that_reads_its_layers_weights_is_told_what_to_do():
    with pytest.raises(BackendError, match="leave that layer in float or place stubs yourself") as error:
        outcome(STATIC, task_of(Reading))
    assert "has no attribute 'weight'" in str(error.value)
    assert dtypes(STATIC.keeping_float("stem"), task_of(Reading))["head"] == "int8"


class Placed(nn.Module):
    """As people write models for eager mode."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.one, self.two = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu, self.plus = nn.ReLU(), FloatFunctional()
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        x = self.relu(self.one(self.quant(x)))
        x = self.dequant(self.plus.add(x, self.two(x)))
        return self.head(x.mean((2, 3)))


STATIC_CONVS = STATIC.having(
    default=Float(),
    overrides=(Override(type="Conv2d", scheme=Static()), Override(layer="plus", scheme=Static())),
)


def test_stubs_that_the_user_placed_are_all_there_are():
    modules = kernels(task_of(Placed), STATIC_CONVS)
    assert not any(isinstance(module, QuantWrapper) for module in modules.values())
    assert dtypes(STATIC_CONVS, task_of(Placed)) == {
        "one": "int8",
        "two": "int8",
        "plus": "int8",
        "head": "float32",
    }


def test_a_layer_outside_of_the_users_stubs_must_stay_float():
    with pytest.raises(BackendError, match="leave layers that stand outside of the model's stubs in float"):
        outcome(STATIC, task_of(Placed))


def test_a_function_among_them_cannot_be_left_in_float():
    with pytest.raises(BackendError, match=r"was given integers .*'aten::add.out'.*: let it run"):
        outcome(STATIC_CONVS.keeping_float("plus"), task_of(Placed))


def test_a_float_layer_among_them_is_an_island():
    recipe = STATIC.keeping_float("two", "head")
    result = outcome(recipe, task_of(Placed))
    rows = {row.layer: row.dtype for row in result.layers}
    assert rows == {"one": "int8", "two": "float32", "plus": "int8", "head": "float32"}
    assert result.sqnr_db > 25
    rebuilt = rebuild(task_of(Placed), result.recipe, result.model.state_dict())
    assert torch.equal(rebuilt(*result.example), result.model(*result.example))


def test_modules_kept_whole_stay_float_inside():
    recipe = STATIC.having(non_traceable=("block",))
    result = outcome(recipe)
    assert result.float_layers == ("block",)
    assert {row.layer: row.dtype for row in result.layers} == {
        "stem": "int8",
        "block": "float32",
        "head": "int8",
    }


def test_a_module_to_keep_whole_that_is_not_there_is_named():
    with pytest.raises(RecipeError, match=r"non_traceable\[0\]: the model has no module 'gone'"):
        outcome(STATIC.having(non_traceable=("gone",)))


@pytest.mark.parametrize("recipe", [STATIC, STATIC.with_weights(granularity="per_channel"), TRAINED])
@pytest.mark.parametrize("make", [TinyNet, Chain, Placed, Gated])
def test_the_reference_emulates_the_kernels_closely(recipe, make):
    recipe = recipe.keeping_float("head") if make is Placed else recipe
    task = task_of(make)
    backend = load_backend("eager")
    example = task.inputs(task.calibration()[0])
    model = task.model() if recipe.training is None else task.model().train()
    prepared = backend.prepare(model, recipe, example)
    prepared.model.eval()
    with torch.no_grad():
        for batch in task.calibration():
            prepared.model(*task.inputs(batch))
        found = backend.convert(prepared, example)
        emulated, run = backend.reference(prepared), found.model
        step = max(float(m.scale) for m in run.modules() if hasattr(m, "scale"))
        assert (emulated(*example) - run(*example)).abs().max() < 3 * step


def test_dynamic_layers_have_no_reference():
    backend, task = load_backend("eager"), Tiny()
    prepared = backend.prepare(task.model(), STATIC.with_mode("dynamic"), task.inputs(task.calibration()[0]))
    with pytest.raises(BackendError, match="layers in dynamic mode have no reference form: head"):
        backend.reference(prepared)


WITHOUT_WEIGHTS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(4),
    "InstanceNorm2d": lambda: nn.InstanceNorm2d(4, affine=True),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "LayerNorm": lambda: nn.LayerNorm(6),
    "ELU": nn.ELU,
    "Hardswish": nn.Hardswish,
    "LeakyReLU": lambda: nn.LeakyReLU(0.1),
}


class Between(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.one, self.layer, self.two = nn.Conv2d(1, 4, 3, padding=1), make(), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.two(self.layer(torch.tanh(self.one(x)))).mean((2, 3))


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_layers_without_weights_run_on_their_kernels(name):
    task = task_of(lambda: Between(WITHOUT_WEIGHTS[name]))
    result = outcome(STATIC.with_weights(granularity="per_channel"), task)
    rows = {row.layer: row for row in result.layers}
    assert rows["layer"].dtype == "int8"
    assert rows["layer"].own_sqnr_db > 25
    rebuilt = rebuild(task, result.recipe, result.model.state_dict())
    assert torch.equal(rebuilt(*result.example), result.model(*result.example))


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_and_have_a_reference(name):
    task = task_of(lambda: Between(WITHOUT_WEIGHTS[name]))
    backend, example = load_backend("eager"), task.inputs(task.calibration()[0])
    prepared = backend.prepare(task.model(), STATIC, example)
    with torch.no_grad():
        prepared.model(*example)
        emulated, kernels = backend.reference(prepared), backend.convert(prepared, example).model
        gap = (emulated(*example) - kernels(*example)).abs().max()
    assert gap < 3 * float(kernels.two.module.scale)


class Keywords(TinyNet):
    def forward(self, image, offset=0.0):
        return {"scores": super().forward(image + offset)}


def test_inputs_by_name_and_outputs_in_a_dict_are_no_trouble():
    class Named(type(task_of(Keywords))):
        def inputs(self, batch):
            return {"image": batch[0]}

        def predictions(self, output, batch):
            return output["scores"].argmax(-1)

    assert dtypes(STATIC, Named()) == {"stem": "int8", "block.conv": "int8", "head": "int8"}


class Noisy(TinyNet):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.randn_like(x))


def test_chance_in_a_model_is_no_difference_and_is_left_as_it_was():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    task = task_of(Noisy)
    model, example = task.model(), task.inputs(task.calibration()[0])
    torch.manual_seed(3)
    load_backend("eager").prepare(model, STATIC, example)
    assert torch.equal(torch.rand(1), expected)


class Twofold(TinyNet):
    """The block is called as it stands, and its parts from outside as well."""

    def forward(self, x):
        x = self.relu(self.stem(x))
        return self.head(self.pool(self.block(x) + self.block.conv(x)).flatten(1))


def test_layers_called_from_outside_of_their_module_are_refused_where_that_matters():
    class Untraceable(Twofold):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 else x

    with pytest.raises(BackendError, match="gives other outputs than the float one: are layers called"):
        outcome(STATIC, task_of(Untraceable))


def test_a_record_of_another_model_has_no_reference():
    backend, task = load_backend("eager"), Tiny()
    prepared = backend.prepare(task.model(), STATIC, task.inputs(task.calibration()[0]))
    with pytest.raises(BackendError, match="the model has no reference form"):
        backend.reference_of(prepared, outcome(STATIC, task_of(Chain)).model)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Own(TinyNet):
    def __init__(self):
        super().__init__()
        self.stem = Scaled(1, 8, 3, padding=1)


def test_layers_of_the_users_own_classes_stay_float_and_it_is_said():
    result = outcome(STATIC, task_of(Own))
    assert result.float_layers == ("stem",)
    assert result.warnings == ("1 layer stays float, eager has no static kernel for: stem (Scaled)",)
