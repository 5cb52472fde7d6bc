"""torch.ao's own kernels for single modules, swapped in after conversion, alike in both of its modes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.ao.quantization import (
    QConfig,
    float16_dynamic_qconfig,
    float_qparams_weight_only_qconfig,
    get_default_dynamic_quant_module_mappings,
    swap_module,
)

from qtrack.backends.assignment import RECURRENT
from qtrack.backends.base import replace_module
from qtrack.backends.torch_ao import dynamic_qconfig, weight_range
from qtrack.recipe import AnyScheme, Dynamic, Float16, WeightOnly, WeightSpec

LOOKUP_KERNELS = {nn.Embedding: nnq.Embedding, nn.EmbeddingBag: nnq.EmbeddingBag}


def has_lookup_kernel(module: nn.Module, scheme: AnyScheme) -> bool:
    """Is there a kernel that does for an embedding what the scheme says: a scale per row, not symmetric?"""
    if type(module) not in LOOKUP_KERNELS or not isinstance(scheme, WeightOnly):
        return False
    wanted = scheme.weight.granularity == "per_channel" and not scheme.weight.symmetric
    plain = module.max_norm is None and getattr(module, "mode", "sum") == "sum"
    return wanted and plain and scheme.weight.bits == 8


def is_half_recurrent(module: nn.Module, scheme: AnyScheme) -> bool:
    """Is it a recurrent layer, whose weights only a kernel can take in float16?"""
    return isinstance(module, RECURRENT) and isinstance(scheme, Float16)


def has_dynamic_kernel(module: nn.Module) -> bool:
    """Can a float layer be swapped for a kernel that measures its activations?"""
    return type(module) in get_default_dynamic_quant_module_mappings()


def use_lookup_kernel(model: nn.Module, name: str) -> None:
    """Look rows up in integers, and turn those to float."""
    _swap(model, name, float_qparams_weight_only_qconfig, LOOKUP_KERNELS)


def make_half(model: nn.Module, name: str) -> None:
    """A recurrent layer with its weights in float16."""
    _swap(model, name, float16_dynamic_qconfig, get_default_dynamic_quant_module_mappings())


def make_dynamic(model: nn.Module, name: str, scheme: Dynamic) -> None:
    """A layer whose kernel measures its activations."""
    qconfig = dynamic_qconfig(scheme)
    if isinstance(model.get_submodule(name), RECURRENT):
        qconfig = QConfig(activation=qconfig.activation, weight=_clamping(qconfig.weight))
    _swap(model, name, qconfig, get_default_dynamic_quant_module_mappings())


def narrow(kernel: Any, spec: WeightSpec) -> None:
    """Hold a kernel's weight to the bits asked for: torch.ao rounds the largest one step too far."""
    if spec.bits == 8 or not callable(getattr(kernel, "weight", None)):
        return
    number, weight = weight_range(spec), kernel.weight()
    integers = weight.int_repr().clamp(number["quant_min"], number["quant_max"])
    kernel.set_weight_bias(_like(integers, weight), kernel.bias())


def keep_scale(module: Any) -> None:
    """Make scale and zero-point part of the ``state_dict``, where torch.ao forgot them."""
    for name in ("scale", "zero_point"):
        value = torch.tensor(getattr(module, name))
        delattr(module, name)
        module.register_buffer(name, value)


def _like(integers: Tensor, weight: Tensor) -> Tensor:
    """With the scales of another quantized tensor."""
    if weight.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return torch._make_per_tensor_quantized_tensor(integers, weight.q_scale(), weight.q_zero_point())
    return torch._make_per_channel_quantized_tensor(
        integers,
        weight.q_per_channel_scales(),
        weight.q_per_channel_zero_points(),
        weight.q_per_channel_axis(),
    )


def _clamping(make: Callable[[], Any]) -> Callable[[], Any]:
    """Observers that cut what they saw to the range that its integers have, before it is quantized."""

    def made() -> Any:
        observer = make()
        observer.register_forward_hook(_clamp)
        return observer

    return made


def _clamp(observer: Any, seen: tuple[Tensor], _: Any) -> None:
    scale, zero_point = observer.calculate_qparams()
    shape = (-1, *[1] * (seen[0].dim() - 1)) if scale.numel() > 1 else ()
    scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    low, high = (scale * (end - zero_point) for end in (observer.quant_min, observer.quant_max))
    seen[0].data.clamp_(low, high)


def _swap(model: nn.Module, name: str, qconfig: Any, mapping: Any) -> None:
    module = model.get_submodule(name)
    for part in (
        module,
        *(module if isinstance(module, nn.Sequential) else ()),
    ):  # a layer and what was fused to it
        part.qconfig = qconfig
    replace_module(model, name, swap_module(module, mapping, {}))
