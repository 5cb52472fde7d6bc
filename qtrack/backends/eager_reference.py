"""The arithmetic of an eager model's integers in float: what torch exports, and kernels are held against.

It is made of the float model with its stubs: weights are those that the kernels hold, and each output that a
kernel rounds to a scale is rounded so here: in plain arithmetic, since torch does not export its own fake
quantization with recorded scales.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from qtrack.backends.base import Side
from qtrack.backends.weights import weighted

FULL_RANGE = (0, 255)
"""What the kernels saturate at, also where observers were told of fewer bits."""


class Rounded(nn.Module):
    """A module whose output takes the values that 8-bit integers of this scale can have."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, module: nn.Module, scale: float, zero_point: int) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("scale", torch.tensor([scale]))
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.int32))

    def forward(self, *inputs: Any) -> Tensor:
        output: Tensor = self.module(*inputs)
        steps = torch.round(output / self.scale) + self.zero_point
        return (steps.clamp(*FULL_RANGE) - self.zero_point) * self.scale


def emulated(reference: nn.Module, kernels: nn.Module, sides: Collection[Side]) -> nn.Module:
    """The fused float model with the scales and parameters of a quantized one; changes the model."""
    done: list[str] = []
    for name, kernel in kernels.named_modules():
        if any(name.startswith(f"{above}.") for above in done) or not name:
            continue
        if ".quantized" in type(kernel).__module__:
            reference.set_submodule(name, _emulation(reference.get_submodule(name), kernel, sides))
            done.append(name)
        elif is_parametrized(kernel) or not any(True for _ in kernel.children()):
            if "weights" in sides:
                reference.set_submodule(name, copy.deepcopy(kernel))
            done.append(name)
    return reference


def _emulation(twin: nn.Module, kernel: Any, sides: Collection[Side]) -> nn.Module:
    """What does the same as a kernel in float; ``twin`` is what the kernel was made of."""
    if isinstance(kernel, nnq.QFunctional):
        twin.activation_post_process = _rounded(nn.Identity(), kernel, sides)
        return twin
    if isinstance(kernel, nnq.Quantize):
        return _rounded(nn.Identity(), kernel, sides)
    if isinstance(kernel, nnq.DeQuantize):
        return nn.Identity()
    if callable(getattr(kernel, "weight", None)):
        if "weights" in sides:
            _take(twin, kernel)
    else:
        twin.load_state_dict({n: v for n, v in kernel.state_dict().items() if n in twin.state_dict()})
    return _rounded(twin, kernel, sides) if hasattr(kernel, "scale") else twin


def _rounded(module: nn.Module, kernel: Any, sides: Collection[Side]) -> nn.Module:
    """The module with its output as the kernel rounds it, where activations are to be."""
    rounds = "activations" in sides
    return Rounded(module, float(kernel.scale), int(kernel.zero_point)) if rounds else module


def _take(twin: nn.Module, kernel: Any) -> None:
    """Weight and bias of a kernel, in which BatchNorm is folded already."""
    layer: Any = weighted(twin)
    layer.weight = nn.Parameter(kernel.weight().detach().dequantize(), requires_grad=False)
    bias = kernel.bias()
    layer.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
    for name, child in twin.named_children():
        if isinstance(child, _BatchNorm):
            twin.set_submodule(name, nn.Identity())
