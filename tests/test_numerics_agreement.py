"""The layer table against PyTorch's own Numeric Suite, against brute force, and by law.

The suite gives one SQNR per batch; here its tensors are joined over all batches first, as the table's are.
"""

import copy
import itertools
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.ns import _numeric_suite as eager_suite
from torch.ao.ns import _numeric_suite_fx as suite
from torch.ao.ns.fx.utils import compute_sqnr
from torch.ao.quantization import DeQuantStub, QuantStub, convert, default_qconfig, fuse_modules, prepare

from qtrack import compare_models
from qtrack.backends import load_backend
from qtrack.backends.engines import quiet
from qtrack.numerics import ErrorSums, Options, Reference, compare
from qtrack.recipe import Float, Override, Recipe, Static
from qtrack.task import load_module, load_task

ROOT = Path(__file__).parents[1]
RECIPE = Recipe(engine="x86")
SUITE_DB = 0.01
BRUTE_FORCE_DB = 0.1


class Encoder(nn.Module):
    """One block of a transformer, normalised before each half."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)
        self.wide, self.gelu, self.narrow = (
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
        )

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        q, k, v = (self.split(part(normed)) for part in (self.query, self.key, self.value))
        attention = torch.softmax(torch.matmul(q, k.transpose(2, 3)), -1)
        x = x + self.project(torch.matmul(attention, v).transpose(1, 2).reshape(x.shape))
        return x + self.narrow(self.gelu(self.wide(self.mlp_norm(x))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.blocks = nn.Sequential(Encoder(32, 4), Encoder(32, 4))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x))).mean(1))


def seeded(make):
    torch.manual_seed(0)
    return make().eval()


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def digits():
    task = load_task("digits.py:Digits", ROOT / "pipelines")
    return task.model().eval(), [images for images, _ in task.calibration()]


def resnet():
    networks = load_module("networks.py", ROOT / "benchmarks", "benchmark")
    return seeded(networks.ResNet18), [*noise(8, 3, 64, 64).split(5)]


def transformer():
    return seeded(Transformer), [*noise(40, 10, 12).split(16)]


NETWORKS = {"digits": digits, "resnet": resnet, "transformer": transformer}
WEIGHTED = {"digits": 17, "resnet": 21, "transformer": 14}
"""Convolutions and linear layers."""
REPORTED = {"digits": 21, "resnet": 31, "transformer": 27}
"""These, and the adds, matmuls, poolings and normalisations that the suite pairs."""


class Case:
    """A network, calibrated and converted, with qtrack's layer table of it."""

    def __init__(self, model, batches, recipe=RECIPE):
        torch.set_num_threads(1)
        backend, example = load_backend("fx"), (batches[0],)
        self.batches = batches
        prepared = backend.prepare(model, recipe, example)
        with torch.no_grad():
            for batch in batches:
                prepared.model(batch)
        self.quantized = backend.convert(prepared, example)
        self.reference = prepared.model
        self.converted = self.quantized.model

    def table(self, options=None):
        rows = compare(self.quantized.pair, [(batch,) for batch in self.batches], options).rows
        return {row.layer: row for row in rows}


@cache
def case(name):
    return Case(*NETWORKS[name]())


def plain(tensor):
    return (tensor.dequantize() if tensor.is_quantized else tensor).detach().double()


def joined(tensors):
    return torch.cat([plain(tensor) for tensor in tensors])


def decibels(reference, actual):
    """SQNR by its definition, in float64."""
    return float(10 * torch.log10(reference.pow(2).sum() / (reference - actual).pow(2).sum()))


@cache
def outputs_by_the_suite(name):
    """Joined outputs of each layer that the suite reports, float and quantized, by the table's names."""
    known = case(name)
    logged = suite.add_loggers(
        "float", copy.deepcopy(known.reference), "int8", copy.deepcopy(known.converted), suite.OutputLogger
    )
    with torch.no_grad():
        for model in logged:
            for batch in known.batches:
                model(batch)
    found = suite.extract_logger_info(*logged, suite.OutputLogger, "int8")
    functions, outputs = functions_in_order(known), {}
    for result in found.values():
        one, other = (result["node_output"][side][0] for side in ("float", "int8"))
        outputs[name_of(other, functions)] = joined(one["values"]), joined(other["values"])
    assert len(outputs) == len(found)
    return outputs


def weighted(table):
    return [row.layer for row in table.values() if row.weight_sqnr_db is not None]


def functions_in_order(case):
    """The table's functions by kind, first to last: the suite has no names of its own for them."""
    names = defaultdict(list)
    for row in case.table().values():
        if row.layer not in dict(case.reference.named_modules()):
            names[row.type].append(row.layer)
    return names


def name_of(logged, functions):
    """A module's dotted name; of functions, the next of that kind."""
    kind = re.sub(r"(_relu)?(_\d+)?$", "", logged["ref_node_name"])
    return functions[kind].pop(0) if kind in functions else logged["fqn"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_accumulated_errors_equal_those_of_the_suite(name):
    table, outputs = case(name).table(), outputs_by_the_suite(name)
    assert len(outputs) == REPORTED[name]
    assert set(weighted(table)) <= set(outputs)
    assert set(outputs) - set(table) <= {"pool"}  # max pooling adds no error: it has no row
    for layer, pair in outputs.items():
        if layer in table:
            assert table[layer].sqnr_db == pytest.approx(decibels(*pair), abs=SUITE_DB)


@pytest.mark.parametrize("name", NETWORKS)
def test_weight_errors_equal_those_of_the_suite(name):
    models = copy.deepcopy(case(name).reference), copy.deepcopy(case(name).converted)
    found = suite.extract_weights("float", models[0], "int8", models[1])
    table, weights = case(name).table(), {}
    for result in found.values():
        one, other = (result["weight"][side][0] for side in ("float", "int8"))
        weights[other["fqn"]] = [plain(side["values"][0]).float() for side in (one, other)]
    assert sorted(weights) == sorted(weighted(table))
    assert len(weights) == WEIGHTED[name]
    for layer, pair in weights.items():
        assert table[layer].weight_sqnr_db == pytest.approx(float(compute_sqnr(*pair)), abs=SUITE_DB)


class Stubbed(nn.Module):
    """Written for eager mode: stubs at the ends, a functional add, layers that fusion swallows."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant, self.sum = QuantStub(), DeQuantStub(), FloatFunctional()
        self.stem, self.stem_bn, self.stem_relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.deep, self.deep_relu = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.wide, self.wide_relu, self.head = nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem_relu(self.stem_bn(self.stem(self.quant(x))))
        x = self.sum.add(x, self.deep_relu(self.deep(x)))
        return self.dequant(self.head(self.wide_relu(self.wide(x.mean((2, 3))))))


FUSED = [["stem", "stem_bn", "stem_relu"], ["deep", "deep_relu"], ["wide", "wide_relu"]]


@cache
def eager():
    """The float model, fused, converted, and the table of the first against the last, with the batches."""
    model, batches = seeded(Stubbed), [*noise(40, 3, 9, 9).split(16)]
    with quiet(), torch.no_grad():
        fused = fuse_modules(copy.deepcopy(model), FUSED)
        fused.qconfig = default_qconfig
        prepared = prepare(fused)
        for batch in batches:
            prepared(batch)
        converted = convert(prepared)
    return fused, converted, compare_models(model, converted, batches).set_index("layer"), batches


def joined_by_the_eager_suite():
    """Outputs of each layer, float and quantized; the suite passes over a linear layer with a fused ReLU."""
    fused, converted, _, batches = copy.deepcopy(eager())
    with quiet(), torch.no_grad():
        eager_suite.prepare_model_outputs(fused, converted)
        for batch in batches:
            fused(batch), converted(batch)
    found = eager_suite.get_matching_activations(fused, converted)
    return {
        key.removesuffix(".stats"): (once(one["float"]), joined(one["quantized"]))
        for key, one in found.items()
    }


def once(tensors):
    """Of a fused layer the suite keeps each float batch twice, one after the other."""
    return joined(tensors[:: len(tensors) // len(eager()[3])])


def test_errors_of_eager_models_equal_those_of_the_eager_suite():
    table, outputs = eager()[2], joined_by_the_eager_suite()
    assert sorted(outputs) == ["deep", "head", "quant", "stem", "sum"]
    for layer in ("stem", "deep", "sum", "head"):
        assert table["sqnr_db"][layer] == pytest.approx(decibels(*outputs[layer]), abs=SUITE_DB)


def test_weight_errors_of_eager_models_equal_those_of_the_eager_suite():
    fused, converted, table, _ = eager()
    found = eager_suite.compare_weights(fused.state_dict(), converted.state_dict())
    weights = {key.split(".")[0]: pair for key, pair in found.items()}
    assert sorted(weights) == ["deep", "head", "stem", "wide"]
    for layer, pair in weights.items():
        expected = float(compute_sqnr(plain(pair["float"]).float(), plain(pair["quantized"]).float()))
        assert table["weight_sqnr_db"][layer] == pytest.approx(expected, abs=SUITE_DB)


def alone(name, layer):
    """A network of which this one layer is quantized, calibrated on the same batches."""
    only = Override(layer=layer, scheme=Static())
    return Case(*NETWORKS[name](), RECIPE.having(default=Float(), overrides=(only,)))


def outputs_of(model, layer, batches):
    seen = []
    hook = model.get_submodule(layer).register_forward_hook(
        lambda module, inputs, output: seen.append(output)
    )
    with torch.no_grad():
        for batch in batches:
            model(batch)
    hook.remove()
    return joined(seen)


@pytest.mark.slow
def test_own_shares_equal_those_of_networks_with_one_quantized_layer_each():
    table = case("digits").table()
    assert len(weighted(table)) == WEIGHTED["digits"]
    for layer in weighted(table):
        single = alone("digits", layer)
        models = single.reference, single.converted
        expected = decibels(*(outputs_of(model, layer, single.batches) for model in models))
        assert table[layer].own_sqnr_db == pytest.approx(expected, abs=BRUTE_FORCE_DB)


SAMPLED = 2048
"""Elements of each sample: half of the digits network's largest layers, a 32nd of the ResNet's."""
SAMPLED_DB = 1.0
"""The bound that is stated for the sampled mode."""


@pytest.mark.parametrize("name", ["digits", "resnet"])
def test_a_part_of_each_sample_gives_nearly_the_same_table(name):
    exact, sampled = case(name).table(), case(name).table(Options(sample=SAMPLED))
    for layer, row in exact.items():
        assert sampled[layer].sqnr_db == pytest.approx(row.sqnr_db, abs=SAMPLED_DB)
        assert sampled[layer].own_sqnr_db == pytest.approx(row.own_sqnr_db, abs=SAMPLED_DB)


seeds = st.integers(0, 2**31)


def images(seed, samples=3, channels=8, offset=0.0, spread=0.1):
    """A batch and what came instead, each channel with a range of its own."""
    generator = torch.Generator().manual_seed(seed)
    ranges = torch.exp(2 * torch.randn(1, channels, 1, 1, generator=generator))
    x, error = (torch.randn(samples, channels, 5, 4, generator=generator) for _ in range(2))
    return offset + ranges * x, offset + ranges * (x + spread * error)


def measures(reference, actual):
    sums = ErrorSums()
    sums.add(Reference(reference), actual)
    return [sums.sqnr_db, sums.cosine, sums.nmse, sums.max_abs_error]


@settings(max_examples=30, deadline=None)
@given(seeds)
def test_the_order_of_channels_does_not_matter(seed):
    x, y = images(seed)
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed))
    assert measures(x[:, order], y[:, order]) == pytest.approx(measures(x, y), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans(), st.booleans())
def test_the_layout_in_memory_does_not_matter(seed, reference_last, actual_last):
    x, y = images(seed)
    turned = [
        tensor.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        for tensor, last in ((x, reference_last), (y, actual_last))
    ]
    assert measures(*turned) == pytest.approx(measures(x, y), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(seeds, st.booleans())
@pytest.mark.filterwarnings("ignore:.*torch.quantize_per_tensor, torch.quantize_per_channel")
def test_quantized_tensors_are_taken_for_the_numbers_they_stand_for(seed, channels_last):
    x, y = images(seed)
    if channels_last:
        x, y = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, y))
    quantized = torch.quantize_per_tensor(y, float(y.abs().max()) / 100, 128, torch.quint8)
    assert measures(x, quantized) == measures(x, quantized.dequantize())


@settings(max_examples=5, deadline=None)
@given(seeds, st.sampled_from([(1_000_000,), (1, 1_000_000), (10, 100_000), (1000, 10, 10, 10)]))
def test_a_large_offset_does_not_drown_a_small_error(seed, shape):
    """Within blocks sums are float32: energies of a million elements agree with float64 to 1e-5."""
    generator = torch.Generator().manual_seed(seed)
    x = 1000 + torch.randn(shape, generator=generator)
    y = x + 1e-3 * torch.randn(shape, generator=generator)
    sums = ErrorSums()
    sums.add(Reference(x), y)
    exact, actual = x.double(), y.double()
    assert sums.signal == pytest.approx(float(exact.pow(2).sum()), rel=1e-5)
    assert sums.noise == pytest.approx(float((exact - actual).pow(2).sum()), rel=1e-5)
    assert sums.sqnr_db == pytest.approx(decibels(exact, actual), abs=1e-4)
    assert sums.max_abs_error == float((exact - actual).abs().max())
    assert sums.cosine == pytest.approx(1.0, abs=1e-6)


def stack(widths):
    """Layers of these widths, one after another."""
    convolutions = [nn.Conv2d(*pair, 3, padding=1) for pair in itertools.pairwise([1, *widths])]
    return nn.Sequential(*convolutions, nn.ReLU()).eval()


@settings(max_examples=8, deadline=None)
@given(seeds, st.lists(st.integers(1, 9), min_size=1, max_size=3))
def test_equal_models_have_no_error_and_one_direction(seed, widths):
    torch.manual_seed(seed)
    same = Case(stack(widths), [*torch.randn(6, 1, 5, 5).split(4)], RECIPE.with_mode("float"))
    table = same.table()
    assert len(table) == len(widths)
    for row in table.values():
        assert (row.sqnr_db, row.own_sqnr_db, row.max_abs_error) == (None, None, 0.0)
        assert row.cosine in (None, pytest.approx(1.0))
