"""Packed parameters of recurrent layers, as tensors and back."""

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic

from qtrack.backends.engines import quiet
from qtrack.engine.digests import digest_of
from qtrack.engine.packed import load, unpacked

LAYERS = {
    "lstm": lambda: nn.LSTM(4, 6, num_layers=2, bidirectional=True),
    "gru": lambda: nn.GRU(4, 6),
    "lstm cell": lambda: nn.LSTMCell(4, 6),
    "gru cell": lambda: nn.GRUCell(4, 6),
    "rnn cell": lambda: nn.RNNCell(4, 6),
}


def quantized(layer, dtype):
    model = nn.Sequential(LAYERS[layer]())
    with quiet():
        return quantize_dynamic(model, {type(model[0])}, dtype=dtype)


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_gives_the_same_after_a_round_trip(layer, dtype, tmp_path):
    torch.manual_seed(0)
    first, second = quantized(layer, dtype), quantized(layer, dtype)
    torch.save(unpacked(first.state_dict()), tmp_path / "state.pt")
    with quiet():
        state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert digest_of(state) == digest_of(first.state_dict()) != digest_of(second.state_dict())
    load(second, state)
    assert digest_of(second.state_dict()) == digest_of(state)
    x = torch.randn(3, 4) if "cell" in layer else torch.randn(5, 3, 4)
    with torch.no_grad():
        expected, found = first(x), second(x)
    one, other = (out[0] if isinstance(out, tuple) else out for out in (expected, found))
    assert torch.equal(one, other)
