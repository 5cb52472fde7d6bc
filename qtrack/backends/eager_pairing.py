"""Finds each layer of an eager-mode quantized model again in the float model that it was made of.

Modules keep their names. What fusion swallowed stands as Identity in the quantized model, right behind the
layer that swallowed it; so a fused layer ends, in the float model, where the last of these ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from qtrack.backends.fx_pairing import UserModule, dequantized_weight, folded_weight, moves_data, user_modules
from qtrack.numerics import Pair, Site
from qtrack.numerics.hooks import HookedModel
from qtrack.numerics.steps import OUTPUT, Inputs, Step

STUBS = ("QuantStub", "DeQuantStub", "Quantize", "DeQuantize", "QuantWrapper")
SWALLOWED = (_BatchNorm, nn.ReLU, nn.ReLU6)


def pair_modules(reference: nn.Module, quantized: nn.Module, example: Inputs) -> Pair:
    """Pair all layers with weights, and all modules that ran quantized, by their names."""
    one, other = HookedModel(reference), HookedModel(quantized)
    called, ran = _called(one, reference, example), _called(other, quantized, example)
    modules = user_modules(reference)
    sites = (_site(i, called, ran, reference, quantized, modules) for i in range(len(called)))
    return Pair(one, other, tuple(site for site in sites if site is not None))


def _called(runner: HookedModel, model: nn.Module, example: Inputs) -> dict[str, Step]:
    """Every call of a module without children, in execution order."""
    leaves = [name for name, module in model.named_modules() if name and _is_leaf(module)]
    calls = [f"{name}#{n}" if n > 1 else name for name in leaves for n in range(1, 10)]
    return {step.node: step for step in runner.run(example, set(calls)) if step.node != OUTPUT}


def _is_leaf(module: nn.Module) -> bool:
    """Fused modules and quantized ones count as one, whatever they keep inside."""
    home = type(module).__module__
    return not any(True for _ in module.children()) or ".ao.nn." in home


def _site(
    index: int,
    called: dict[str, Step],
    ran: dict[str, Step],
    reference: nn.Module,
    quantized: nn.Module,
    modules: dict[str, UserModule],
) -> Site | None:
    node = list(called)[index]
    name = node.partition("#")[0]
    if node not in ran or modules[name].type in STUBS:
        return None
    module, actual = reference.get_submodule(name), quantized.get_submodule(name)
    if isinstance(actual, nn.Identity) and not isinstance(module, nn.Identity):
        return None
    dtype = _dtype(actual, ran[node])
    if not modules[name].params and (dtype == "float32" or moves_data(modules[name].type)):
        return None
    swallowed = _swallowed(list(called)[index + 1 :], reference, quantized)
    bn = next((m for m in map(reference.get_submodule, swallowed) if isinstance(m, _BatchNorm)), None)
    return Site(
        index=index,
        layer=node,
        type=modules[name].type,
        dtype=dtype,
        params=modules[name].params,
        start=node,
        end=swallowed[-1] if swallowed else node,
        actual=node,
        weight=folded_weight(module, bn),
        actual_weight=dequantized_weight(actual),
    )


def _swallowed(after: Sequence[str], reference: nn.Module, quantized: nn.Module) -> list[str]:
    """The calls behind a layer that fusion took into it."""
    taken: list[str] = []
    for node in after:
        if "#" in node or not isinstance(quantized.get_submodule(node), nn.Identity):
            break
        if not isinstance(reference.get_submodule(node), SWALLOWED):
            break
        taken.append(node)
    return taken


def _dtype(module: nn.Module, step: Step) -> str:
    home = type(module).__module__
    if "quantized.dynamic" in home:
        return "float16_weight" if getattr(module, "dtype", None) == torch.float16 else "int8_dynamic"
    outputs = step.output if isinstance(step.output, tuple) else (step.output,)
    tensors = [output for output in outputs if isinstance(output, Tensor)]
    if any(tensor.is_quantized for tensor in tensors) or _is_quantized(home):
        return "int8"
    return str(tensors[0].dtype).removeprefix("torch.") if tensors else "float32"


def _is_quantized(home: str) -> bool:
    """Is the module one of torch.ao's quantized ones (FloatFunctional stands among them, but is float)?"""
    return ".quantized" in home and not home.endswith("functional_modules")
