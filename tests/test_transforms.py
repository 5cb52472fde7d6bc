"""Transforms rewrite the float model: it computes what it did before, and its layers quantize better."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Tiny, TinyNet, batches
from torch import nn
from torch.nn import functional as F

from qtrack.engine import execute, rebuild
from qtrack.engine.exporting import export_model
from qtrack.errors import BackendError, RecipeError
from qtrack.recipe import Recipe, Training
from qtrack.transforms import adjacent_pairs, transformed, unfused_batch_norms

KINDS = ("fold_batch_norm", "equalize", "correct_bias")


def settle(model, seed=0):
    """Statistics and channel ranges of a trained network that drifted apart."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.1)
            nn.init.uniform_(module.weight, 0.2, 3, generator=generator) if module.affine else None
        elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            spread = torch.exp(2 * torch.randn(len(module.weight), generator=generator))
            module.weight.data *= spread.view(-1, *[1] * (module.weight.dim() - 1))
    return model.eval()


def conv(inputs, outputs, size=3, **options):
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **options)


NETWORKS = {
    "conv": lambda: nn.Sequential(
        conv(3, 8, bias=False), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4), nn.BatchNorm2d(4, affine=False)
    ),
    "depthwise": lambda: nn.Sequential(
        conv(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, groups=8), nn.ReLU(), conv(8, 4, 1)
    ),
    "multiplied": lambda: nn.Sequential(
        conv(3, 4), nn.ReLU(), conv(4, 8, groups=4), nn.Identity(), conv(8, 2)
    ),
    "grouped": lambda: nn.Sequential(
        conv(3, 8),
        nn.Dropout2d(),
        nn.ReLU(),
        conv(8, 6, groups=2, padding_mode="circular"),
        conv(6, 6, groups=3),
    ),
    "dropout": lambda: nn.Sequential(conv(3, 8), nn.Dropout(), nn.Identity(), nn.BatchNorm2d(8), nn.ReLU()),
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 4), nn.ReLU6(), conv(4, 4)
    ),
    "linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4), nn.Linear(4, 4)
    ),
}
PAIRS = {
    "conv": [("0", "3")],
    "depthwise": [("0", "3"), ("3", "5")],
    "multiplied": [("0", "2"), ("2", "4")],
    "grouped": [("0", "3"), ("3", "4")],
    "dropout": [],
    "transposed": [],
    "linear": [("1", "4"), ("4", "5")],
}
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def network(name, seed=0):
    torch.manual_seed(seed)
    with torch.no_grad():
        return settle(NETWORKS[name](), seed)


def after(model, *kinds, example=(IMAGES,), **fields):
    return transformed(model, Recipe(transforms=kinds, **fields), example)


def apart(one, other, inputs=IMAGES):
    with torch.no_grad():
        expected = one(inputs)
        return float((other(inputs) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_float_function_stays_what_it_was(name, kind):
    before = network(name)
    kept = copy.deepcopy(before.state_dict())
    assert apart(before, after(before, kind)) < 1e-4
    assert all(torch.equal(kept[key], value) for key, value in before.state_dict().items())


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(NETWORKS)), st.integers(0, 10**6))
def test_the_float_function_stays_for_any_weights(name, seed):
    before = network(name, seed)
    assert apart(before, after(before, "equalize")) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_pairs_are_adjacent_layers_past_what_scaling_passes_through(name):
    assert adjacent_pairs(network(name)) == PAIRS[name]


@pytest.mark.parametrize("name", [name for name in PAIRS if PAIRS[name]])
def test_equalized_layers_have_equal_ranges_on_both_sides_of_each_channel(name):
    model = after(network(name), "equalize")
    for first, second in adjacent_pairs(model):
        out = model.get_submodule(first).weight.abs().flatten(1).amax(1)
        layer = model.get_submodule(second)
        weight, groups = layer.weight.detach(), getattr(layer, "groups", 1)
        by_input = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1).abs().amax((1, 3))
        torch.testing.assert_close(by_input.flatten(), out, rtol=2e-3, atol=0)


def test_equalization_by_hand():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[8.0], [0.5]]))
        model[0].bias.copy_(torch.tensor([4.0, 1.0]))
        model[2].weight.copy_(torch.tensor([[2.0, 0.5]]))
    equal = after(model, "equalize", example=(torch.ones(1, 1),))
    assert equal[0].weight.flatten().tolist() == pytest.approx([4.0, 0.5])  # s: sqrt(8 * 2) / 2 = 2, and 1
    assert equal[0].bias.tolist() == pytest.approx([2.0, 1.0])
    assert equal[2].weight.flatten().tolist() == pytest.approx([4.0, 0.5])


def test_a_channel_without_weights_is_left_alone():
    model = network("conv")
    model[0].weight.data[2] = 0
    assert apart(model, after(model, "equalize")) < 1e-4


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("conv", []),
        ("dropout", [("0", "3", ("1", "2"))]),
        ("transposed", []),
    ],
)
def test_batch_norms_that_torch_ao_leaves_have_something_before_them(name, found):
    assert unfused_batch_norms(network(name)) == found


class Functional(nn.Module):
    """Functions where others have modules, and a layer whose weight is read as well."""

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.b, self.c, self.d = (
            conv(3, 4),
            nn.BatchNorm2d(4),
            conv(4, 4),
            conv(4, 4),
            conv(4, 4),
        )

    def forward(self, x):
        x = F.relu(self.bn(F.dropout(self.a(x), training=self.training)))
        x = self.c(torch.relu(self.b(x)).relu())
        return self.d(x) + self.d.weight.sum()


def test_functions_are_looked_past_and_read_layers_left():
    model = settle(Functional())
    assert unfused_batch_norms(model) == [("a", "bn", ("dropout",))]
    assert adjacent_pairs(model) == [("a", "b"), ("b", "c")]
    assert apart(model, after(model, "equalize")) < 1e-4


def test_a_layer_with_two_readers_or_two_calls_is_no_pair():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = conv(3, 3), conv(3, 3), conv(3, 3)

        def forward(self, x):
            y = self.a(x)
            return self.c(self.c(self.b(y))) + y

    assert adjacent_pairs(Twice()) == []


def test_a_folded_norm_keeps_its_name_and_what_follows_is_fused():
    model = after(network("dropout"), "fold_batch_norm")
    assert [name for name, _ in model.named_modules() if name] == ["0", "1", "2", "3", "4"]
    assert isinstance(model[3], nn.Identity)

    class Plain(Tiny):
        def model(self):
            return nn.Sequential(network("dropout"), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()

        def calibration(self):
            return [(IMAGES, torch.zeros(5, dtype=torch.long))]

        validation = test = calibration

    plain, folded = (execute(Plain(), Recipe(transforms=kinds)) for kinds in ((), ("fold_batch_norm",)))
    assert [row.layer for row in folded.layers if row.params] == ["0.0"]
    assert folded.layers[0].low == 0 > plain.layers[0].low  # ReLU is part of it


class Gate(nn.Module):
    """Decides by data, so that it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(conv(3, 4), nn.Dropout(), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 3))

    def forward(self, x):
        return self.body(x) if x.sum() > 0 else x


def test_the_traceable_parts_of_a_model_are_transformed():
    model = settle(nn.Sequential(Gate(), conv(3, 3), conv(3, 3)))
    assert sorted(adjacent_pairs(model)) == [("0.body.0", "0.body.4"), ("1", "2")]
    assert adjacent_pairs(model, ["0"]) == [("1", "2")]
    assert unfused_batch_norms(model, ["0"]) == []
    assert apart(model, after(model, "equalize"), IMAGES.abs()) < 1e-4


class Stubborn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(3, 3)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x


def test_a_model_of_which_nothing_can_be_traced_is_named_in_one_line():
    with pytest.raises(
        BackendError, match=r"^transforms need .* traced: the model's own forward\(\): .*"
    ) as e:
        after(Stubborn().eval(), "equalize")
    assert "\n" not in str(e.value)


def test_layers_that_are_called_from_outside_are_found_by_the_outputs():
    class Outside(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = settle(nn.Sequential(conv(3, 3), conv(3, 3)))

        def forward(self, x):
            return self.body(x) + self.body[0](x) if x.numel() > int(x.sum() * 0) else x

    with pytest.raises(BackendError, match=r"^after equalize the float model gives other outputs"):
        after(Outside().eval(), "equalize")


class Skewed(Tiny):
    """Tiny with channel ranges apart between two convolutions, and BatchNorm behind a Dropout."""

    def model(self):
        net = super().model()
        net.block = nn.Sequential(
            conv(8, 8), nn.Dropout(0.1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, bias=False)
        )
        torch.manual_seed(0)
        nn.init.dirac_(net.block[0].weight)
        nn.init.zeros_(net.block[0].bias)
        nn.init.dirac_(net.block[4].weight)
        s = torch.logspace(-1.5, 1.5, 8)
        net.block[2].weight.data.copy_(s)
        net.block[4].weight.data /= s.view(1, -1, 1, 1)
        net.block[4].weight.data += 0.01 * torch.randn(8, 8, 3, 3) / s.view(1, -1, 1, 1)
        return net.eval()

    def validation(self):
        return batches(64, 3)


@pytest.mark.parametrize("backend", ["fx", "eager", pytest.param("pt2e", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kinds", [("fold_batch_norm",), ("equalize", "correct_bias")], ids="+".join)
def test_a_recorded_model_is_rebuilt_with_its_transforms(backend, kinds):
    done = execute(Skewed(), Recipe(backend=backend, transforms=kinds), thorough=False)
    built = rebuild(Skewed(), done.recipe, done.model.state_dict())
    assert torch.equal(built(*done.example), done.model(*done.example))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["dynamic", "weight_only", "float16"])
def test_transforms_go_with_every_mode_that_quantizes(mode):
    recipe = Recipe(transforms=("equalize", "correct_bias")).with_mode(mode)
    done = execute(Skewed(), recipe, thorough=False)
    built = rebuild(Skewed(), done.recipe, done.model.state_dict())
    assert torch.equal(built(*done.example), done.model(*done.example))


def test_transforms_go_with_torchao():
    recipe = Recipe(backend="torchao", transforms=KINDS, default="weight_only")
    done = execute(Skewed(), recipe.with_weights(granularity="per_channel", bits=3))
    built = rebuild(Skewed(), done.recipe, done.model.state_dict())
    assert torch.equal(built(*done.example), done.model(*done.example))
    (head,) = [row for row in done.layers if row.dtype != "float32"]
    plain = execute(Skewed(), done.recipe.having(transforms=())).layers[-1]
    assert head.own_sqnr_db > plain.own_sqnr_db


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["fx", "eager", "pt2e"])
def test_a_corrected_model_is_exported(backend, tmp_path):
    recipe = Recipe(backend=backend, transforms=("equalize", "correct_bias"))
    done = execute(Skewed(), recipe, thorough=False)
    written = export_model(Skewed(), done.recipe, done.model, tmp_path / "m.pt2")
    assert written.equal_predictions > 0.95


def test_each_transform_takes_effect():
    digests = {
        kinds: execute(Skewed(), Recipe(transforms=kinds), thorough=False).digests["parameters"]
        for kinds in (
            (),
            ("fold_batch_norm",),
            ("equalize",),
            ("correct_bias",),
            ("equalize", "correct_bias"),
        )
    }
    assert len(set(digests.values())) == 5


def test_a_recipe_that_quantizes_nothing_applies_none():
    done = execute(Skewed(), Recipe(default="float", transforms=KINDS), thorough=False)
    assert done.digests["parameters"] == done.digests["float_weights"]


def test_training_goes_on_from_the_equalized_model():
    recipe = Recipe(transforms=("equalize",), training=Training(epochs=1))
    assert execute(Skewed(), recipe, thorough=False).value > 0.5


def test_bias_correction_centres_the_error_of_each_channel():
    coarse = Recipe(transforms=("correct_bias",)).with_weights(bits=3)

    class Line(Tiny):
        def model(self):
            torch.manual_seed(0)
            return nn.Sequential(nn.Flatten(), nn.Linear(36, 4, bias=False)).eval()

        def calibration(self):
            return [(images.abs(), labels) for images, labels in batches(64, 2)]

    x = torch.cat([images for images, _ in Line().calibration()])
    means = []
    for recipe in (coarse.having(transforms=()), coarse):
        done = execute(Line(), recipe)
        means.append((done.model(x) - Line().model()(x)).mean(0).abs().max().item())
        errors = [row.sqnr_db for row in done.layers if row.params]
    assert means[1] < 0.1 * means[0]
    assert errors[0] == pytest.approx(done.sqnr_db)  # the reference is the network without the correction


def test_the_comparison_is_with_the_network_as_it_was_before_the_correction():
    plain, corrected = (
        execute(Tiny(), Recipe(transforms=kinds).with_weights(bits=3)) for kinds in ((), ("correct_bias",))
    )
    assert [row.low for row in plain.layers] == [row.low for row in corrected.layers]
    assert corrected.sqnr_db > plain.sqnr_db


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"transforms": ["equalize", "equalize"]}, "equalize stands there twice"),
        ({"transforms": ["correct_bias", "equalize"]}, "correct_bias must be the last"),
        ({"transforms": ["correct_bias"], "training": Training()}, "does not go with training"),
    ],
)
def test_transforms_that_do_not_go_together_are_refused(fields, fault):
    with pytest.raises(ValueError, match=fault):
        Recipe(**fields)


def test_an_unknown_name_of_a_module_is_refused_as_ever():
    with pytest.raises(RecipeError, match="no module 'gone'"):
        execute(Tiny(), Recipe(transforms=("equalize",), non_traceable=("gone",)))


def test_healthy_networks_keep_their_types():
    assert type(transformed(TinyNet(), Recipe(), ())) is TinyNet
