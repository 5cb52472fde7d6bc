"""Finds each layer of an eager-mode quantized model again in the float model that it was made of.

Modules keep their names, but for the wrappers that hold stubs: a layer inside of one goes by the wrapper's.
What fusion swallowed stands as Identity in the quantized model, right behind the layer that swallowed it; so
a fused layer ends, in a float model that is not fused itself, where the last of these ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from qtrack.backends.assignment import UserModule, user_modules
from qtrack.backends.layer_weights import (
    dequantized_weight,
    dynamic_dtype,
    folded_weight,
    looks_up_integers,
    stored_as,
)
from qtrack.backends.moves import moves_data
from qtrack.numerics import Pair, Site
from qtrack.numerics.hooks import HookedModel
from qtrack.numerics.steps import OUTPUT, Inputs, Step

STUBS = ("QuantStub", "DeQuantStub", "Quantize", "DeQuantize", "QuantWrapper")
SWALLOWED = (_BatchNorm, nn.ReLU, nn.ReLU6)


def pair_modules(
    reference: nn.Module,
    quantized: nn.Module,
    example: Inputs,
    *,
    modules: Mapping[str, UserModule] | None = None,
    wrappers: Collection[str] = (),
    closed: Collection[str] = (),
) -> Pair:
    """Pair all layers with weights, and all modules that ran quantized, by their names.

    ``modules`` are those of the user's float model, where the reference was made from that; what is
    ``closed`` counts as one layer whatever it has inside.
    """
    one, other = HookedModel(reference), HookedModel(quantized)
    names = _Names(modules or user_modules(reference), frozenset(wrappers))
    called = _called(one, reference, example, names, closed)
    ran = _called(other, quantized, example, names, closed)
    found = _Found(reference, quantized, names, called, ran)
    sites = (_site(index, node, found) for index, node in enumerate(called))
    return Pair(one, other, tuple(site for site in sites if site is not None), dict(_moves(found)))


@dataclass(frozen=True)
class _Names:
    modules: Mapping[str, UserModule]
    wrappers: frozenset[str]

    def of(self, path: str) -> str:
        """The float model's name for a module, or for a call of it (``#2`` at its end)."""
        module, mark, call = path.partition("#")
        above, _, last = module.rpartition(".")
        return (above if last == "module" and above in self.wrappers else module) + mark + call


@dataclass(frozen=True, eq=False)
class _Found:
    reference: nn.Module
    quantized: nn.Module
    names: _Names
    called: Mapping[str, Step]
    ran: Mapping[str, Step]


def _called(
    runner: HookedModel, model: nn.Module, example: Inputs, names: _Names, closed: Collection[str]
) -> dict[str, Step]:
    """Every call of a module that counts as one layer, in execution order."""
    leaves: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{leaf}.") for leaf in leaves)
        known = names.of(name) in names.modules and name not in names.wrappers
        if name and known and not inside and (name in closed or _is_leaf(module)):
            leaves.append(name)
    calls = [f"{name}#{n}" if n > 1 else name for name in leaves for n in range(1, 10)]
    return {step.node: step for step in runner.run(example, set(calls)) if step.node != OUTPUT}


def _is_leaf(module: nn.Module) -> bool:
    """Fused modules, quantized ones and those whose weights are stored small count as one."""
    home = type(module).__module__
    return not any(True for _ in module.children()) or ".ao.nn." in home or is_parametrized(module)


def _site(index: int, node: str, found: _Found) -> Site | None:
    name = node.partition("#")[0]
    user = found.names.modules[found.names.of(name)]
    if node not in found.ran or user.type in STUBS:
        return None
    module, actual = found.reference.get_submodule(name), found.quantized.get_submodule(name)
    if isinstance(actual, nn.Identity):
        return None
    dtype = _dtype(actual, found.ran[node])
    if not user.params and (dtype == "float32" or moves_data(user.type)):
        return None
    swallowed = _swallowed(list(found.called)[index + 1 :], found)
    bn = next((m for m in map(found.reference.get_submodule, swallowed) if isinstance(m, _BatchNorm)), None)
    return Site(
        index=index,
        layer=found.names.of(node),
        type=user.type,
        dtype=dtype,
        params=user.params,
        start=node,
        end=swallowed[-1] if swallowed else node,
        actual=node,
        weight=folded_weight(module, bn),
        actual_weight=dequantized_weight(actual),
    )


def _moves(found: _Found) -> Iterator[tuple[str, str]]:
    """Modules that hand on integers and add no error of their own."""
    for node, step in found.ran.items():
        name = found.names.of(node)
        user = found.names.modules.get(name.partition("#")[0])
        quantized = isinstance(step.output, Tensor) and step.output.is_quantized
        if user is not None and quantized and moves_data(user.type):
            yield name, node


def _swallowed(after: Sequence[str], found: _Found) -> list[str]:
    """The calls behind a layer that fusion took into it."""
    taken: list[str] = []
    for node in after:
        if "#" in node or not isinstance(found.quantized.get_submodule(node), nn.Identity):
            break
        if not isinstance(found.reference.get_submodule(node), SWALLOWED):
            break
        taken.append(node)
    return taken


def _dtype(module: nn.Module, step: Step) -> str:
    home = type(module).__module__
    if "quantized.dynamic" in home:
        return dynamic_dtype(module)
    if looks_up_integers(module):
        return "int8_weight"
    outputs = step.output if isinstance(step.output, tuple) else (step.output,)
    tensors = [output for output in outputs if isinstance(output, Tensor)]
    if any(tensor.is_quantized for tensor in tensors) or _is_quantized(home):
        return "int8"
    stored = stored_as(module)
    return stored or (str(tensors[0].dtype).removeprefix("torch.") if tensors else "float32")


def _is_quantized(home: str) -> bool:
    """Is the module one of torch.ao's quantized ones (FloatFunctional stands among them, but is float)?"""
    return ".quantized" in home and not home.endswith("functional_modules")
