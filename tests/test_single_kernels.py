"""Recurrent layers, embeddings and attention, alike with FX and in eager mode."""

import pytest
import torch
from test_fx import task_of
from torch import nn
from torch.ao.nn import quantized as nnq

from qtrack.engine import execute, rebuild
from qtrack.engine.packed import unpacked
from qtrack.errors import RecipeError
from qtrack.ledger import models
from qtrack.recipe import Override, Recipe, WeightOnly, WeightSpec

BACKENDS = ["fx", "eager"]
DYNAMIC = Recipe(engine="x86", default="dynamic")
ROWS = WeightOnly(weight=WeightSpec(granularity="per_channel", symmetric=False))


class Rows(nn.Module):
    """Reads an image row by row."""

    def __init__(self, make):
        super().__init__()
        self.rnn = make()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        out, _ = self.rnn(x)
        return self.head(out[:, -1, :8])


class Cell(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.cell = make()
        self.pairs = isinstance(self.cell, nn.LSTMCell)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        state = self.cell(x[:, 1], self.cell(x[:, 0]))
        return self.head(state[0] if self.pairs else state)


class Lookups(nn.Module):
    def __init__(self, mode="sum", max_norm=None):
        super().__init__()
        self.table = nn.Embedding(10, 8, max_norm=max_norm)
        self.bag = nn.EmbeddingBag(10, 8, mode=mode)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        words = x.abs().clamp(max=9).long().flatten(1)
        return self.head(self.table(words).mean(1) + self.bag(words))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.embed(x)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head(self.norm(x + y).mean(1))


NETWORKS = {
    "LSTM": lambda: Rows(lambda: nn.LSTM(6, 8, batch_first=True)),
    "LSTM of two layers": lambda: Rows(lambda: nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)),
    "GRU": lambda: Rows(lambda: nn.GRU(6, 8, batch_first=True)),
    "LSTMCell": lambda: Cell(lambda: nn.LSTMCell(6, 8)),
    "GRUCell": lambda: Cell(lambda: nn.GRUCell(6, 8)),
    "RNNCell": lambda: Cell(lambda: nn.RNNCell(6, 8)),
}


def outcome(make, recipe, backend):
    return execute(task_of(make, (6, 6)), recipe.having(backend=backend))


def dtypes(result):
    return {row.layer: row.dtype for row in result.layers}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_dynamic_reaches_every_recurrent_layer_that_torch_ao_has_a_kernel_for(network, backend):
    result = outcome(NETWORKS[network], DYNAMIC, backend)
    assert set(dtypes(result).values()) == {"int8_dynamic"}
    assert result.warnings == ()
    assert result.sqnr_db > 30


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("network", NETWORKS)
def test_float16_reaches_them_too(network, backend):
    result = outcome(NETWORKS[network], DYNAMIC.having(default="float16"), backend)
    assert set(dtypes(result).values()) == {"float16_weight"}
    assert result.sqnr_db > 60


@pytest.mark.parametrize("change", [{}, {"granularity": "per_channel"}, {"bits": 4}])
@pytest.mark.parametrize("network", NETWORKS)
def test_both_backends_give_the_same_parameters_and_outputs(network, change):
    fx, eager = (outcome(NETWORKS[network], DYNAMIC.with_weights(**change), name) for name in BACKENDS)
    assert fx.digests["parameters"] == eager.digests["parameters"]
    assert fx.digests["behaviour"] == eager.digests["behaviour"]


def test_fewer_bits_hold_for_recurrent_layers():
    model = outcome(NETWORKS["RNNCell"], DYNAMIC.with_weights(bits=3), "fx").model
    integers = model.cell._packed_weight_ih.__getstate__()[0][0].int_repr()
    assert integers.min() >= -4
    assert integers.max() <= 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
def test_fewer_bits_hold_for_all_layers(backend, granularity):
    for mode in ("static", "dynamic"):
        recipe = Recipe(engine="x86", default=mode).with_weights(bits=3, granularity=granularity)
        model = outcome(Attentive, recipe, backend).model
        for name in ("embed", "head"):
            layer = model.get_submodule(name)
            integers = getattr(layer, "module", layer).weight().int_repr()
            assert (integers.min() >= -4, integers.max() <= 3) == (True, True)


def test_a_plain_rnn_has_no_kernel():
    result = outcome(lambda: Rows(lambda: nn.RNN(6, 8, batch_first=True)), DYNAMIC, "fx")
    assert result.warnings == ("1 layer stays float, fx has no dynamic kernel for: rnn (RNN)",)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # torch's own, for quantized tensors
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("default", ["dynamic", "float16"])
@pytest.mark.parametrize("network", NETWORKS)
def test_recurrent_models_are_saved_and_read_without_running_code(network, default, backend, tmp_path):
    task = task_of(NETWORKS[network], (6, 6))
    result = execute(task, Recipe(backend=backend, engine="x86", default=default))
    assert models.save(task, result, tmp_path / "model") == "saved"
    assert torch.load(tmp_path / "model" / "state_dict.pt", weights_only=True).keys()
    fingerprint = {**result.digests, "recipe": result.recipe.digest}
    loaded = models.load_checked(task, tmp_path / "model", fingerprint)
    assert torch.equal(loaded(*result.example), result.model(*result.example))


def test_packed_weights_are_read_into_a_model_of_other_weights():
    class Other(type(task_of(NETWORKS["LSTM"], (6, 6)))):
        def model(self):
            net = NETWORKS["LSTM"]()
            nn.init.normal_(net.rnn.weight_hh_l0)
            return net.eval()

    result = outcome(NETWORKS["LSTM"], DYNAMIC, "fx")
    rebuilt = rebuild(Other(), result.recipe, unpacked(result.model.state_dict()))
    assert torch.equal(rebuilt(*result.example), result.model(*result.example))


@pytest.mark.parametrize("backend", BACKENDS)
def test_embeddings_run_on_kernels_where_those_do_what_is_asked(backend):
    result = outcome(Lookups, Recipe(engine="x86", default=ROWS), backend)
    assert isinstance(result.model.table, nnq.Embedding)
    assert isinstance(result.model.bag, nnq.EmbeddingBag)
    assert set(dtypes(result).values()) == {"int8_weight"}
    assert result.sqnr_db > 40


@pytest.mark.parametrize(
    ("make", "recipe"),
    [
        (Lookups, Recipe(engine="x86", default=ROWS).with_weights(symmetric=True)),
        (Lookups, Recipe(engine="x86", default="weight_only")),
        (Lookups, Recipe(engine="x86", default=ROWS).with_weights(bits=4)),
        (lambda: Lookups("mean", 1.0), Recipe(engine="x86", default=ROWS)),
    ],
    ids=["symmetric", "per tensor", "four bits", "mean and max_norm"],
)
def test_and_are_stored_small_where_those_do_not(make, recipe):
    result = outcome(make, recipe, "fx")
    assert not isinstance(result.model.table, nnq.Embedding)
    assert not isinstance(result.model.bag, nnq.EmbeddingBag)
    assert set(dtypes(result).values()) == {"int8_weight"}
    assert result.sqnr_db > 15


def test_an_override_gives_embeddings_their_kernels_beside_static_layers():
    recipe = Recipe(engine="x86", overrides=(Override(type="Embedding", scheme=ROWS),))
    found = dtypes(outcome(Lookups, recipe, "fx"))
    assert (found["table"], found["bag"], found["head"]) == ("int8_weight", "float32", "int8")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_attention_stays_float_and_it_is_said(mode, backend):
    result = outcome(Attentive, Recipe(engine="x86", default=mode), backend)
    assert result.float_layers == ("attention",)
    assert result.warnings == (
        f"1 layer stays float, {backend} has no {mode} kernel for: attention (MultiheadAttention)",
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["weight_only", "float16"])
def test_all_of_attentions_weights_are_stored_small(mode, backend):
    result = outcome(Attentive, Recipe(engine="x86", default=mode), backend)
    state = result.model.state_dict()
    stored = state["attention.parametrizations.in_proj_weight.original"]
    assert stored.dtype == {"weight_only": torch.int8, "float16": torch.float16}[mode]
    assert result.float_layers == ()


def test_attention_is_refused_where_an_override_names_it():
    recipe = Recipe(engine="x86", overrides=(Override(layer="attention", scheme="dynamic"),))
    with pytest.raises(RecipeError, match=r"fx has no dynamic kernel for attention \(MultiheadAttention\)"):
        outcome(Attentive, recipe, "fx")
