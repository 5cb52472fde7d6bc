"""What stands in a layer: its weight in float32, and how that is stored.

Nothing here needs torch.ao: a layer may be quantized by it, by torchao, or by the user's own code.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from qtrack.backends.weights import Widen


def is_packed(weight: Any) -> bool:
    """Is it a tensor of a class of its own around plain ones, as torchao makes them?"""
    return isinstance(weight, Tensor) and hasattr(weight, "__tensor_flatten__")


def dynamic_dtype(module: Any) -> str:
    """What a kernel that measures its activations has its weights in; one in float16 leaves them in float."""
    dtypes = (getattr(module, "dtype", None), getattr(module, "weight_dtype", None))
    return "float16_weight" if torch.float16 in dtypes else "int8_dynamic"


def looks_up_integers(module: Any) -> bool:
    """Is it one of torch.ao's embeddings, told by its name, so that torch.ao need not be there?"""
    kind = type(module)
    return kind.__module__.startswith("torch.ao.nn.quantized") and kind.__name__ in (
        "Embedding",
        "EmbeddingBag",
    )


def stored_as(module: nn.Module | None) -> str | None:
    """How the weights in a module are stored where that is smaller than what is computed with."""
    if is_packed(weight := getattr(module, "weight", None)):
        return _packed_as(weight)
    small = next((m for m in (module.modules() if module else ()) if is_parametrized(m, "weight")), None)
    if small is None:
        return None
    restore = small.get_submodule("parametrizations.weight.0")
    return "float16_weight" if isinstance(restore, Widen) else "int8_weight"


def _packed_as(weight: Any) -> str:
    """``int4_weight``, ``int8_dynamic``, ``float8_weight``: by the bits in use, not those that hold them."""
    number = getattr(weight, "target_dtype", None) or getattr(weight, "qdata", weight).dtype
    dynamic = any(
        getattr(weight, name, None) is not None for name in ("act_quant_kwargs", "activation_quantization")
    )
    return f"{str(number).removeprefix('torch.').partition('_')[0]}_{'dynamic' if dynamic else 'weight'}"


def _weight_holder(module: nn.Module | None) -> Any:
    """The module itself, or the layer at the head of what fusion made of it."""
    if isinstance(module, nn.Sequential) and len(module) and not hasattr(module, "weight"):
        return module[0]
    return module


def folded_weight(module: nn.Module | None, norm: nn.Module | None = None) -> Tensor | None:
    """The weight with BatchNorm folded in, its own or one beside it, as the quantized layer has it."""
    holder = _weight_holder(module)
    weight = getattr(holder, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    bn: Any = norm or getattr(holder, "bn", None)
    if bn is None:
        return weight.detach()
    transposed = "Transpose" in type(holder).__name__
    folded, _ = fuse_conv_bn_weights(
        weight, holder.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias, transposed
    )
    return folded.detach()


def dequantized_weight(module: nn.Module | None) -> Tensor | None:
    weight = getattr(_weight_holder(module), "weight", None)
    if callable(weight) and not isinstance(weight, Tensor):
        weight = weight()
    if not isinstance(weight, Tensor) or weight.dim() < 2:
        return None
    whole = weight.dequantize() if weight.is_quantized or is_packed(weight) else weight
    return whole.detach().float()
