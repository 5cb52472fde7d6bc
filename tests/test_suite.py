"""compare_models: two models and some batches, as users have them."""

import copy
import math
import warnings

import pytest
import torch
from tiny import Tiny, TinyNet
from torch import nn
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import (
    DeQuantStub,
    QuantStub,
    default_dynamic_qconfig,
    default_qconfig,
    fuse_modules,
    get_default_qconfig_mapping,
    prepare,
    quantize_dynamic,
)
from torch.ao.quantization import convert as convert_eager
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import qtrack
from qtrack.errors import BackendError, DataError
from qtrack.numerics import sqnr_db

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore::UserWarning")


def images(count=4, size=16):
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(size, 1, 6, 6, generator=generator) for _ in range(count)]


def fx(model, batches, engine="x86"):
    arguments = batches[0] if isinstance(batches[0], tuple) else (batches[0],)
    prepared = prepare_fx(copy.deepcopy(model).eval(), get_default_qconfig_mapping(engine), arguments)
    with torch.no_grad():
        for batch in batches:
            prepared(*(batch if isinstance(batch, tuple) else (batch,)))
    return convert_fx(prepared)


class EagerNet(nn.Module):
    """Written for eager mode: stubs, a functional add, a ReLU called twice."""

    def __init__(self):
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.conv2, self.relu2 = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        self.sum = FloatFunctional()
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu1(self.bn1(self.conv1(self.quant(x))))
        x = self.sum.add(x, self.relu2(self.conv2(x)))
        return self.dequant(self.head(x.mean((2, 3))))


def eager():
    torch.manual_seed(0)
    model = EagerNet()
    with torch.no_grad():
        for batch in images():
            model(batch)  # moves the BatchNorm statistics
    model.eval()
    fused = fuse_modules(copy.deepcopy(model), [["conv1", "bn1", "relu1"], ["conv2", "relu2"]])
    fused.qconfig = default_qconfig
    prepared = prepare(fused)
    with torch.no_grad():
        for batch in images():
            prepared(batch)
    return model, convert_eager(prepared)


def test_fx_models_are_compared_under_the_float_models_names():
    model = Tiny().model()
    table = qtrack.compare_models(model, fx(model, images()), images())
    assert list(table["layer"]) == ["stem", "block.conv", "block.add", "pool", "head"]
    assert list(table.columns)[:5] == ["index", "layer", "type", "dtype", "params"]
    assert (table["own_sqnr_db"] > 20).all()
    assert table.attrs["samples"] == 64


def test_distributions_of_activations_span_what_was_seen():
    model = Tiny().model()
    table = qtrack.compare_models(model, fx(model, images()), images()).set_index("layer")
    found = table.attrs["distributions"]["head"]
    assert len(found["edges"]) == len(found["counts"]) + 1
    assert found["edges"][0] <= table["low"]["head"]
    assert found["edges"][-1] >= table["high"]["head"] / 1.125
    assert sum(found["counts"]) == 4 * 64  # all of four batches of 16 samples with 4 outputs each


def test_the_users_models_are_left_as_they_are():
    model = Tiny().model()
    before = copy.deepcopy(model.state_dict())
    model.block.train()
    qtrack.compare_models(model, fx(copy.deepcopy(model), images()), images())
    assert model.block.bn.training
    assert not model.stem.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_eager_models_are_compared_after_what_fusion_swallowed():
    model, quantized = eager()
    rows = qtrack.compare_models(model, quantized, images()).set_index("layer")
    assert list(rows.index) == ["conv1", "conv2", "sum", "head"]
    assert set(rows["dtype"]) == {"int8"}
    x = torch.cat(images())
    with torch.no_grad():
        reference = model.relu1(model.bn1(model.conv1(x)))
        actual = quantized.conv1(quantized.quant(x)).dequantize()
    assert rows["sqnr_db"]["conv1"] == pytest.approx(sqnr_db(reference, actual), abs=0.01)
    assert rows["own_sqnr_db"]["conv1"] == pytest.approx(rows["sqnr_db"]["conv1"], abs=0.01)
    assert rows["weight_sqnr_db"]["conv1"] > 30


def test_eager_own_share_is_that_of_the_layer_on_the_float_input():
    model, quantized = eager()
    rows = qtrack.compare_models(model, quantized, images()).set_index("layer")
    x = torch.cat(images())
    with torch.no_grad():
        before = model.relu1(model.bn1(model.conv1(x)))
        after = model.relu2(model.conv2(before))
        scale, zero_point = quantized.conv1.scale, quantized.conv1.zero_point
        alone = quantized.conv2(
            torch.quantize_per_tensor(before, scale, zero_point, torch.quint8)
        ).dequantize()
    assert rows["own_sqnr_db"]["conv2"] == pytest.approx(sqnr_db(after, alone), abs=0.01)


def test_eager_models_are_left_without_hooks_or_wrappers():
    model, quantized = eager()
    qtrack.compare_models(model, quantized, images())
    for network in (model, quantized):
        assert not any(module._forward_hooks for module in network.modules())
        assert "add" not in vars(network.sum)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.rnn = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, tokens):
        out, (hidden, _) = self.rnn(self.table(tokens))
        return {"logits": self.head(out[:, -1]), "hidden": hidden}


def test_dynamic_lstm_with_tuples_and_dicts_as_outputs():
    torch.manual_seed(0)
    model = Recurrent().eval()
    quantized = quantize_dynamic(
        model, {nn.LSTM: default_dynamic_qconfig, nn.Linear: default_dynamic_qconfig}
    )
    tokens = [torch.randint(0, 20, (size, 5)) for size in (4, 4, 3)]
    rows = qtrack.compare_models(model, quantized, tokens).set_index("layer")
    assert dict(rows["dtype"]) == {"table": "float32", "rnn": "int8_dynamic", "head": "int8_dynamic"}
    assert rows["own_sqnr_db"]["rnn"] > 30
    assert math.isnan(rows["sqnr_db"]["table"])  # null: equal
    assert rows["cosine"]["table"] == pytest.approx(1.0)


def test_batches_of_different_sizes_and_kinds():
    model = Tiny().model()
    quantized = fx(model, images())
    whole = qtrack.compare_models(model, quantized, [torch.cat(images())])
    parts = [torch.cat(images())[:5], (torch.cat(images())[5:40],), {"x": torch.cat(images())[40:]}]
    split = qtrack.compare_models(model, quantized, parts)
    assert split["sqnr_db"].tolist() == pytest.approx(whole["sqnr_db"].tolist(), abs=0.01)


class Twice(TinyNet):
    """One layer called twice, and products of tensors."""

    def __init__(self):
        super().__init__()
        self.same = nn.Linear(4, 4)

    def forward(self, x):
        y = self.same(self.same(super().forward(x)))
        return y * torch.sigmoid(y)


def test_each_call_of_a_layer_is_a_row():
    torch.manual_seed(0)
    model = Twice().eval()
    layers = list(qtrack.compare_models(model, fx(model, images()), images())["layer"])
    assert layers[-4:] == ["same", "same#2", "sigmoid", "mul"]


def test_several_candidates_share_one_run_of_the_float_model():
    model = Tiny().model()
    calls = []
    quantized = {"x86": fx(model, images()), "qnnpack": fx(model, images(), "qnnpack")}
    counted = copy.deepcopy(model)
    counted.head.register_forward_hook(lambda *_: calls.append(1))
    table = qtrack.compare_models(model, quantized, images())
    assert list(table["candidate"].unique()) == ["x86", "qnnpack"]
    assert table.groupby("layer")["best"].sum().ge(1).all()
    alone = qtrack.compare_models(model, quantized["qnnpack"], images())
    together = table[table["candidate"] == "qnnpack"]
    assert together["sqnr_db"].tolist() == pytest.approx(alone["sqnr_db"].tolist(), abs=1e-6)


def test_a_users_own_measure_becomes_a_column():
    model = Tiny().model()
    table = qtrack.compare_models(
        model, fx(model, images()), images(), measures={"l1": lambda one, other: (one - other).abs().mean()}
    )
    assert (table["l1"] > 0).all()


def test_own_share_can_be_left_out_and_tensors_be_sampled():
    model = Tiny().model()
    quantized = fx(model, images())
    exact = qtrack.compare_models(model, quantized, images(), own_share=False)
    assert exact["own_sqnr_db"].isna().all()
    sampled = qtrack.compare_models(model, quantized, images(), sample=64)
    assert sampled["sqnr_db"].tolist() == pytest.approx(exact["sqnr_db"].tolist(), abs=2.0)


class Silent(TinyNet):
    def forward(self, x):
        return super().forward(x * 0)


def test_layers_without_any_signal_have_null_for_a_ratio():
    torch.manual_seed(0)
    model = Silent().eval()
    nn.init.zeros_(model.stem.bias)
    table = qtrack.compare_models(model, fx(model, images()), images()).set_index("layer")
    assert math.isnan(table["sqnr_db"]["stem"])
    assert table["max_abs_error"]["stem"] == 0


def test_a_model_in_bfloat16_may_be_the_candidate():
    model = EagerNet().eval()
    half = copy.deepcopy(model).to(torch.bfloat16)
    half.register_forward_pre_hook(lambda module, args: tuple(arg.to(torch.bfloat16) for arg in args))
    rows = qtrack.compare_models(model, half, images()).set_index("layer")
    assert set(rows["dtype"]) == {"bfloat16"}
    assert 30 < rows["own_sqnr_db"]["conv2"] < 70


def test_nan_is_reported_with_its_sample_and_averaged_into_nothing():
    model = Tiny().model()
    quantized = fx(model, images())
    batches = images()
    batches[1][3, 0, 2, 2] = math.nan
    table = qtrack.compare_models(model, quantized, batches)
    assert (table["nonfinite_samples"] == 1).all()
    assert table["sqnr_db"].notna().all()
    assert math.isnan(table.attrs["sample_sqnr_db"][""][16 + 3])


def test_models_that_have_nothing_in_common_are_refused():
    model, quantized = eager()
    other = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()).eval()
    with pytest.raises(BackendError, match="no layer of the float one"):
        qtrack.compare_models(other, quantized, images())
    with pytest.raises(BackendError, match="compare apart"):
        qtrack.compare_models(model, {"a": quantized, "b": fx(Tiny().model(), images())}, images())


def test_no_batch_and_wrong_batches_are_refused():
    model = Tiny().model()
    quantized = fx(model, images())
    with pytest.raises(DataError, match="no batch"):
        qtrack.compare_models(model, quantized, [])
    with pytest.raises(DataError, match="the float model refuses batch 0 of shape 2x3x6x6"):
        qtrack.compare_models(model, quantized, [torch.zeros(2, 3, 6, 6)])


def test_a_fault_inside_a_hooked_model_reaches_the_caller():
    model, quantized = eager()
    broken = copy.deepcopy(quantized)
    calls = []

    def fail(module, args):
        calls.append(1)
        if len(calls) > 2:
            raise ZeroDivisionError("inside")

    broken.conv2.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError, match="inside"):
        qtrack.compare_models(model, broken, images())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_fake_quantized_models_are_compared_on_the_gpu():
    model = Tiny().model().cuda()
    half = copy.deepcopy(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = qtrack.compare_models(model, half, [batch.cuda() for batch in images()])
    assert table["cosine"].min() > 0.999
