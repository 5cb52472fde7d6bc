"""The torchao backend, beyond what every backend keeps to."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from tiny import Tiny
from torch import nn

import qtrack
from qtrack import execute
from qtrack.backends import load_backend
from qtrack.backends.capabilities import faults, missing
from qtrack.backends.torchao_json import CONFIGS
from qtrack.engine.digests import digest_of
from qtrack.engine.exporting import export_model
from qtrack.engine.measure import size_bytes
from qtrack.errors import BackendError, RecipeError
from qtrack.ledger import models
from qtrack.recipe import Dynamic, Recipe, Torchao, WeightOnly, WeightSpec, recipe_from_yaml, recipe_to_yaml

pytestmark = pytest.mark.skipif(bool(missing("torchao")), reason="torchao is not installed")

PER_CHANNEL = WeightSpec(granularity="per_channel")
INT8 = WeightOnly(weight=PER_CHANNEL)
MIXED = Recipe(backend="torchao", default=INT8)
WORDS, WIDTH = 30, 32


def groups(size, **fields):
    return WeightOnly(weight=WeightSpec(granularity="per_group", group_size=size, **fields))


def torchaos(name, version=2, **fields):
    return Torchao(config={"_type": name, "_version": version, "_data": fields})


def recipe(default, *overrides):
    return Recipe(backend="torchao", default=default, overrides=overrides)


def done(default, *overrides):
    return execute(Tiny(), recipe(default, *overrides))


def head(outcome):
    return {row.layer: row for row in outcome.layers}["head"]


class Reader(nn.Module):
    """Words to a transformer's layer, an attention of its own, and a Linear."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, words):
        read = self.layer(self.words(words))
        return self.head(self.attention(read, read, read)[0].mean(1))


SENTENCES = (torch.randint(0, WORDS, (4, 7), generator=torch.Generator().manual_seed(0)),)


def reader(dtype=torch.float32):
    torch.manual_seed(0)
    return Reader().eval().to(dtype)


def quantized(model, recipe, example=SENTENCES):
    backend = load_backend("torchao")
    return backend.convert(backend.prepare(model, recipe, example), example)


def dtypes(quantized):
    return {site.layer: site.dtype for site in quantized.pair.sites}


@pytest.mark.slow
def test_importing_it_says_nothing():
    code = "from qtrack.backends import load_backend; load_backend('torchao'); print('done')"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("done\n", "")


def test_torchao_is_not_imported_before_it_is_asked_for():
    code = "import sys, qtrack.backends.torchao_; print([m for m in sys.modules if m.startswith('torchao')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_what_qtrack_adds_to_it_brings_in_no_more_of_torch_ao_than_torch_does():
    code = (
        "import sys, torch; own = set(sys.modules); import qtrack.backends.torchao_; "
        "print([m for m in set(sys.modules) - own if m.startswith('torch.ao.')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_standard_error_works_again_after_the_import(capfd):
    from qtrack.backends.torchao_door import hushed

    with hushed():
        subprocess.run([sys.executable, "-c", "import sys; sys.stderr.write('held back')"])
    sys.stderr.write("heard")
    assert capfd.readouterr().err == "heard"


def test_each_group_has_a_scale_of_its_own():
    outcome = done(groups(8, bits=4))
    assert torch.tensor(outcome.qparams["head.weight.scale"]).shape == (4, 9)
    assert head(outcome).dtype == "int4_weight"
    assert 15 < head(outcome).weight_sqnr_db < 35


def test_smaller_groups_and_more_bits_are_nearer_to_the_weights():
    errors = [head(done(groups(*of))).weight_sqnr_db for of in ((72,), (8,))]
    assert errors == sorted(errors)
    coarse, fine = (
        head(done(WeightOnly(weight=PER_CHANNEL.having(bits=bits)))).weight_sqnr_db for bits in (3, 6)
    )
    assert fine > coarse + 12


def test_zero_points_are_zero_where_weights_are_symmetric_only():
    symmetric, other = (done(groups(8, bits=4, symmetric=s)) for s in (True, False))
    assert not torch.tensor(symmetric.qparams["head.weight.zero_point"]).any()
    assert torch.tensor(other.qparams["head.weight.zero_point"]).any()


def test_integers_and_scale_make_the_weight_that_is_compared():
    outcome = done(INT8)
    state = outcome.model.state_dict()
    weight = state["head.weight.qdata"] * state["head.weight.scale"]
    float_weight = Tiny().model().head.weight.detach()
    noise = float((weight - float_weight).pow(2).sum() / float_weight.pow(2).sum())
    assert head(outcome).weight_sqnr_db == pytest.approx(-10 * torch.tensor(noise).log10().item(), abs=0.01)


def test_groups_that_do_not_come_out_even_are_refused_with_the_layer():
    with pytest.raises(RecipeError) as error:
        done(groups(32))
    assert str(error.value) == (
        "recipe: groups of 32 do not divide the 72 inputs of head (Linear): "
        "choose another group_size, or leave that layer in float"
    )


def test_convolutions_stay_float_and_it_is_said():
    outcome = done(INT8)
    assert outcome.float_layers == ("stem", "block.conv")
    assert outcome.warnings == (
        "2 layers stay float, torchao has no weight_only kernel for: stem (Conv2d), block.conv (Conv2d)",
    )


def test_what_an_override_names_exactly_and_cannot_be_done_is_refused():
    with pytest.raises(RecipeError, match=r"overrides\[0\]: torchao has no weight_only kernel for stem"):
        done("float", {"layer": "stem", "scheme": INT8})


@pytest.mark.parametrize("way", [{"layer": "head"}, {"glob": "he*"}, {"type": "Linear"}])
def test_overrides_reach_layers_by_name_pattern_and_type(way):
    assert head(done("float", {**way, "scheme": groups(8, bits=4)})).dtype == "int4_weight"
    assert head(done(INT8, {**way, "scheme": "float"})).dtype == "float32"


def test_layers_of_one_model_may_have_different_schemes():
    mixed = recipe(
        INT8,
        {"glob": "layer.*", "scheme": groups(16, bits=4)},
        {"layer": "layer.linear2", "scheme": Dynamic(weight=PER_CHANNEL)},
    )
    assert {k: v for k, v in dtypes(quantized(reader(), mixed)).items() if v != "float32"} == {
        "words": "int8_weight",
        "layer.linear1": "int4_weight",
        "layer.linear2": "int8_dynamic",
        "head": "int8_weight",
    }


def test_embeddings_are_quantized_where_the_arithmetic_stays_in_float():
    assert dtypes(quantized(reader(), recipe(groups(8, bits=4))))["words"] == "int4_weight"
    dynamic = quantized(reader(), recipe(Dynamic(weight=PER_CHANNEL)))
    assert dtypes(dynamic)["words"] == "float32"
    assert "words (Embedding)" in dynamic.warnings[0]


def test_attention_is_left_whole_in_float():
    found = quantized(reader(), MIXED)
    assert "attention" in found.float_layers
    assert not any("out_proj" in name for name in dtypes(found))
    assert "attention.out_proj.weight" in found.model.state_dict()


def test_a_model_in_bfloat16_stays_in_bfloat16_around_its_integers():
    found = quantized(reader(torch.bfloat16), MIXED)
    assert dtypes(found)["head"] == "int8_weight"
    assert dtypes(found)["layer.norm1"] == "bfloat16"
    assert found.float_layers == ("layer.self_attn", "attention")
    assert found.model(*SENTENCES).dtype == torch.bfloat16


@pytest.mark.parametrize("scheme", [INT8, Dynamic(weight=PER_CHANNEL), groups(8, bits=4)])
def test_a_state_dict_holds_plain_tensors_and_is_taken_back_bit_for_bit(scheme):
    found = quantized(reader(), recipe(scheme)).model
    state = copy.deepcopy(found.state_dict())
    assert {type(tensor) for tensor in state.values()} <= {torch.Tensor, nn.Parameter}
    torch.manual_seed(1)
    other = quantized(Reader().eval(), recipe(scheme)).model
    assert digest_of(other.state_dict()) != digest_of(state)
    other.load_state_dict(state)
    assert digest_of(other.state_dict()) == digest_of(state)
    assert torch.equal(other(*SENTENCES), found(*SENTENCES))


def test_a_copy_of_a_model_stands_alone():
    found = quantized(reader(), MIXED).model
    other, before = copy.deepcopy(found), found(*SENTENCES)
    other.load_state_dict({name: torch.zeros_like(value) for name, value in found.state_dict().items()})
    assert not other(*SENTENCES).any()
    assert torch.equal(found(*SENTENCES), before)


def test_a_changed_scale_changes_the_digest():
    state = quantized(reader(), MIXED).model.state_dict()
    before = digest_of(state)
    state["head.weight.scale"][0] *= 2
    assert digest_of(state) != before


def test_the_size_counts_integers_scales_and_zero_points():
    layer = quantized(nn.Sequential(nn.Linear(64, 16)).eval(), MIXED, (torch.randn(2, 64),)).model
    assert size_bytes(layer.state_dict()) == 64 * 16 + 16 * 4 + 16 + 16 * 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("0.weight.scale"), r'Missing key\(s\) in state_dict: "0.weight.scale"'),
        (
            lambda state: state.update({"0.weight.qdata": torch.zeros(2, 2)}),
            "0.weight.qdata is torch.float32",
        ),
        (
            lambda state: state.update({"0.weight": torch.zeros(16, 64)}),
            r'Unexpected key\(s\) in state_dict: "0.weight"',
        ),
    ],
)
def test_a_state_dict_that_does_not_fit_is_refused(change, said):
    layer = quantized(nn.Sequential(nn.Linear(64, 16)).eval(), MIXED, (torch.randn(2, 64),)).model
    state = copy.deepcopy(layer.state_dict())
    change(state)
    with pytest.raises(RuntimeError, match=said):
        layer.load_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [INT8, groups(8, bits=4)])
def test_an_exported_model_needs_torch_alone(scheme, tmp_path):
    outcome = execute(Tiny(), recipe(scheme), thorough=False)
    path = tmp_path / "model.pt2"
    found = export_model(Tiny(), outcome.recipe, outcome.model, path)
    assert found.form == "reference"
    assert found.max_abs_difference < 1e-4
    code = (
        f"import sys, torch; m = torch.export.load({str(path)!r}).module(); m(torch.zeros(3, 1, 6, 6)); "
        "print([n for n in sys.modules if n.startswith('torchao')])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_dynamic_layers_are_not_exported(tmp_path):
    outcome = execute(Tiny(), recipe(Dynamic(weight=PER_CHANNEL)), thorough=False)
    with pytest.raises(BackendError, match="layers in dynamic mode have no reference form: head"):
        export_model(Tiny(), outcome.recipe, outcome.model, tmp_path / "model.pt2")


def test_users_can_compare_a_model_that_torchao_quantized():
    table = qtrack.compare_models(reader(), quantized(reader(), MIXED).model, [SENTENCES])
    own = table.set_index("layer").own_sqnr_db
    assert own["head"] > 40
    assert own["words"] > 40


ROUND_TRIPS = [
    ("Int8WeightOnlyConfig", "int8_weight"),
    ("Int8DynamicActivationInt8WeightConfig", "int8_dynamic"),
    ("Float8WeightOnlyConfig", "float8_weight"),
]


@pytest.mark.parametrize(("name", "dtype"), ROUND_TRIPS)
def test_torchaos_own_json_is_carried_out_saved_and_read_back(name, dtype, tmp_path):
    from qtrack.backends.torchao_door import torchao

    written = torchao("torchao.core.config").config_to_dict(getattr(torchao(), name)())
    own = recipe(Torchao(config=json.loads(json.dumps(written))))
    assert recipe_from_yaml(recipe_to_yaml(own)) == own
    outcome = execute(Tiny(), own)
    assert head(outcome).dtype == dtype
    assert models.save(Tiny(), outcome, tmp_path / "model") == "saved"


def test_its_nested_parts_take_effect():
    group = {"_type": "PerGroup", "_version": 1, "_data": {"group_size": 8}}
    outcome = done(
        torchaos(
            "Int8DynamicActivationIntxWeightConfig",
            weight_dtype={"_type": "torch.dtype", "_data": "int4"},
            weight_granularity=group,
        )
    )
    assert head(outcome).dtype == "int4_dynamic"
    assert torch.tensor(outcome.qparams["head.weight.scale"]).shape == (4, 9)


def test_settings_of_the_process_are_left_alone():
    before = torch.get_float32_matmul_precision()
    done(torchaos("Int8WeightOnlyConfig", set_inductor_config=True))
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"_type": "FqnToConfig", "_version": 1, "_data": {}},
            "'FqnToConfig' is not one of Int8",
        ),
        ({}, "config._type: None is not one of"),
        (
            torchaos("Int8WeightOnlyConfig", granularity={"_type": "quantize_", "_data": {}}).config,
            "granularity",
        ),
        (
            torchaos("IntxWeightOnlyConfig", weight_dtype={"_type": "torch.dtype", "_data": "load"}).config,
            "weight_dtype._data: 'load' is not one of int1",
        ),
        ({"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": 3}, "_data: holds the fields"),
    ],
)
def test_a_config_may_name_only_what_is_listed(config, said):
    assert any(said in fault for fault in faults(recipe(Torchao(config=config))))
    backend = load_backend("torchao")
    with pytest.raises(RecipeError):
        backend.prepare(reader(), recipe(Torchao(config=config)), SENTENCES)


def test_another_version_of_a_config_is_refused():
    with pytest.raises(
        RecipeError, match=r"config\._version: .* has version 2 of Int8WeightOnlyConfig, not 1"
    ):
        done(torchaos("Int8WeightOnlyConfig", version=1))


def test_a_field_that_torchao_does_not_know_is_refused():
    with pytest.raises(RecipeError, match=r"torchao cannot read it: .*'nope'"):
        done(torchaos("Int8WeightOnlyConfig", nope=3))


@pytest.mark.skipif(torch.cuda.is_available(), reason="of a machine without these kernels")
@pytest.mark.parametrize(
    ("scheme", "needs"),
    [
        (torchaos("Int4WeightOnlyConfig", group_size=36), "Requires mslk"),
        (torchaos("Float8DynamicActivationFloat8WeightConfig"), "requires CUDA"),
        (torchaos("Float8DynamicActivationInt4WeightConfig", version=1), "Requires mslk"),
    ],
)
def test_a_config_without_a_kernel_here_is_refused_with_what_it_needs(scheme, needs):
    with pytest.raises(BackendError, match=f"{scheme.config['_type']} on head .Linear.: .*{needs}"):
        done(scheme)


def test_what_torchao_would_skip_in_silence_is_refused():
    with pytest.raises(BackendError, match=r"torchao skips Int4WeightOnlyConfig on head .*\[4, 72\]"):
        done(torchaos("Int4WeightOnlyConfig", group_size=128))


def test_every_listed_config_is_one_of_torchaos():
    from qtrack.backends.torchao_door import torchao

    assert all(hasattr(torchao(), name) for name in CONFIGS)
